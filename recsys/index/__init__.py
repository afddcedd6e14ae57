"""Nearest neighbors: building, sharding and searching FAISS indexes."""
