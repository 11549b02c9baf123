"""Candidate → float."""
