"""Online controlled experiments: who is in which arm, and what an arm changes."""
