"""Distillation: from a teacher and data to a student's checkpoint, and from a teacher to data."""
