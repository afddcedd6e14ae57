"""Which models suit a data set: its profile, the decision tree, and `auto`, which trains and chooses."""
