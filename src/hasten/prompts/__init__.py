"""Prompts: templates, examples, evaluation on tasks, and search for better prompts."""
