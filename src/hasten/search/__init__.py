"""Beam search: which sequences of a request continue, fork and end, by their scores."""
