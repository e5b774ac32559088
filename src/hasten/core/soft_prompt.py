"""``SoftPrompt``: learned embeddings that stand before a prompt, as a caller names them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftPrompt:
    """A soft prompt that a model has loaded."""

    folder: str
    num_tokens: int  # virtual tokens, each a position before the prompt
    digest: str  # SHA-256 of the embeddings
