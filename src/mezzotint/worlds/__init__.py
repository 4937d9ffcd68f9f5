"""Procedural worlds with exact ground truth."""
