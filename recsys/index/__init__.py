"""Approximate nearest neighbors: building, sharding and searching FAISS indexes."""
