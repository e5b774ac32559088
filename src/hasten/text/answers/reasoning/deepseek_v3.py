"""DeepSeek V3.1 and later: ``<think>...</think>``; the prompt ends in one of them."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
