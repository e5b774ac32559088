"""Drafters propose the next tokens: one drafter per file, registered under the name of its file."""
