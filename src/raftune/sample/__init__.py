"""Prompt → Candidate."""
