"""Recipes: what is decided about every activation and weight, the fixed ones, and how one becomes a plan."""
