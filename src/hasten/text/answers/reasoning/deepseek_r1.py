"""DeepSeek-R1 and its distillates: ``<think>...</think>``; the prompt may end in the first of them."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
