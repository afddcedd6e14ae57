"""Releases: one immutable, versioned unit of everything that is served together."""
