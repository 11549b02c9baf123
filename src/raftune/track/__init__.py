"""Experiment trackers, each through Accelerate's class for it."""
