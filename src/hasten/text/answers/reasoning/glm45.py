"""GLM 4.5 and later: ``<think>...</think>``."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
