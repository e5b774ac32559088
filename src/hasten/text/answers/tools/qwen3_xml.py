"""vLLM's second parser of Qwen3-Coder's syntax."""

from __future__ import annotations

from hasten.text.answers.tools.qwen3_coder import SYNTAX as QWEN3_CODER

SYNTAX = QWEN3_CODER
