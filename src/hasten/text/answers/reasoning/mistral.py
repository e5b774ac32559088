"""Magistral: ``[THINK]...[/THINK]``."""

from __future__ import annotations

from hasten.text.answers.syntax import ReasoningSyntax

SYNTAX = ReasoningSyntax("[THINK]", "[/THINK]")
