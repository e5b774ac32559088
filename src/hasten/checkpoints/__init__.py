"""Reading checkpoints from disk. Pickle is never read, and nothing of a checkpoint is ever executed."""
