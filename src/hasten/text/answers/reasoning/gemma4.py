"""Gemma 4 writes the thought in a channel."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<|channel>thought\n", "<channel|>")
