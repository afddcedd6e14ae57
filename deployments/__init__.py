"""Ray Serve: one file per deployment, thin wrappers over `recsys`; no algorithms."""
