"""Checkpoints of draft heads, early exits and draft vocabularies. One format per file."""
