"""``SoftPromptTable``: the embeddings of an engine's soft prompts, by virtual token id.

Shape suffixes: N virtual tokens · E hidden size.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class SoftPromptTable:
    """One row for each virtual token.

    Virtual token ids begin at the size of the vocabulary. No id is ever given to another embedding, so a hash of token ids, such
    as that of a KV block, is a hash of the embeddings too.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self._rows_NE = torch.empty(0, hidden_size, dtype=torch.float32, device="cpu")
        self._ids: dict[str, range] = {}

    def add(self, embeddings_NE: Tensor) -> str:
        """Add a soft prompt, unless it is there, and return the SHA-256 of its float32 rows."""
        rows_NE = embeddings_NE.to(torch.float32).contiguous()
        assert rows_NE.shape[1] == self.hidden_size, rows_NE.shape
        digest = hashlib.sha256(rows_NE.numpy().tobytes()).hexdigest()
        if digest not in self._ids:
            first = self.vocab_size + len(self._rows_NE)
            self._rows_NE = torch.cat([self._rows_NE, rows_NE])
            self._ids[digest] = range(first, first + len(rows_NE))
        return digest

    def token_ids(self, digest: str) -> range | None:
        """Return the virtual token ids of a soft prompt; None if it was not added."""
        return self._ids.get(digest)

    def embeddings(self, ids_N: Tensor) -> Tensor:
        """Return the embeddings of virtual tokens [N, E], float32."""
        return self._rows_NE[ids_N - self.vocab_size]
