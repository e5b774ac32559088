"""Compression: from a checkpoint to a smaller one. It writes checkpoints and never serves."""
