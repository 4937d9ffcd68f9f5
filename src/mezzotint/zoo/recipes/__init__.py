"""Recipes: how each embedded checkpoint is trained from scratch."""
