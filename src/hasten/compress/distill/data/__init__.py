"""Data that a teacher writes for a student: outputs, new examples, chosen answers, and pairs."""
