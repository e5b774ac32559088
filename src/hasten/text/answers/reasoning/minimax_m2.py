"""MiniMax M2: ``<think>...</think>``; the prompt ends in the first of them."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
