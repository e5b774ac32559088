"""Pruning: a checkpoint with fewer heads, neurons, channels or layers, or with weights of zero."""
