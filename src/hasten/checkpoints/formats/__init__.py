"""Checkpoints of what is not a whole model, in the layouts that other engines read and write. One format per file."""
