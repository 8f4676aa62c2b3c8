"""Trained adapters as other tools take them, and merged into their model."""
