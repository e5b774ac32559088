"""Masks: which single weights of a matrix become zero. One method is one file."""
