"""recsys: a recommender platform on Ray, from raw events to the slate a user sees."""
