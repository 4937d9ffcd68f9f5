"""Embedded checkpoints: recipes that train them from scratch, and their weights."""
