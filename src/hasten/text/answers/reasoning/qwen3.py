"""Qwen3: ``<think>...</think>``; the prompt may end in the first of them, or in an empty thought."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("<think>", "</think>")
