"""Quantised matrices of safetensors checkpoints. One scheme per file."""
