"""Beam search: which sequences of a request continue, fork and end. It knows scores, but no model and no KV cache."""
