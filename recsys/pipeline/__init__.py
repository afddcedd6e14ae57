"""The request path: the seams, the recommender that runs them, and a file for each step."""
