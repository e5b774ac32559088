"""Handing a checkpoint over to another engine: vLLM."""
