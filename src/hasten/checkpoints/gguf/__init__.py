"""GGUF: one file, or several, with weights, settings and tokenizer."""
