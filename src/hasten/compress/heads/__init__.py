"""Heads that guess from a model's own hidden states. One recipe per file, light to import; its trainee in a file beside it."""
