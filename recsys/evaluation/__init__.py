"""Offline evaluation: what the served pipeline would have shown, against what happened next."""
