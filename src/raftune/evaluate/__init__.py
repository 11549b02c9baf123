"""What a policy is worth: reward on held-out prompts, fluency, diversity, distance from the start."""
