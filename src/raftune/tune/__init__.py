"""Chosen → Checkpoint."""
