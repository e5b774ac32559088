"""Granite 3.2 writes sentences around the thought and before the response."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("Here is my thought process:", "Here is my response:")
