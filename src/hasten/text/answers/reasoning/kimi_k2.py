"""Kimi K2 Thinking: ``<think>...</think>``."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
