"""Distillation of a teacher into a student: losses, teachers and the task that the loop trains."""
