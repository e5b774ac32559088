"""hasten's own routes: tokenize, detokenize, score, caches, health and version."""
