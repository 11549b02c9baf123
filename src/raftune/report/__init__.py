"""What a person sees of a run in a browser: one file, no network."""
