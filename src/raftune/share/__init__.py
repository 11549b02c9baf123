"""What leaves a run: its outputs in the formats of other tools, its policy, their cards, the way to the Hub."""
