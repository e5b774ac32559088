"""Sections of one answer that are decoded in parallel (skeleton of thought, Ning et al., 2023)."""
