"""Prometheus metrics under vLLM's names and hasten's own, and the access log."""
