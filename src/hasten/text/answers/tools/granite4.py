"""Granite 4 writes calls as Hermes does."""

from __future__ import annotations

from hasten.text.answers.tools.hermes import SYNTAX as HERMES

SYNTAX = HERMES
