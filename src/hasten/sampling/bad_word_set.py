"""``BadWordSet``: the tokens that would complete a bad word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.sampling.token_texts import TokenIds, TokenTexts


class BadWordSet:
    """Finds the tokens after which a text would have a bad word in it, in any tokenisation.

    A token does so if its text has a word in it, or begins with the rest of a word whose start ends the text so far::

        text so far   "... an o"        tokens   "orange", "strange"    of the word "rang"
                      "... an ora"               "ng", "nge"
    """

    def __init__(self, texts: TokenTexts, words: Sequence[str]) -> None:
        encoded = {word.encode() for word in words}
        self._texts = texts
        self._containing = np.unique(np.concatenate([texts.containing(word) for word in encoded]))
        self._num_tail_bytes = max(map(len, encoded)) - 1
        self._rests: dict[bytes, list[bytes]] = {}  # by the start of a word
        for word in encoded:
            for cut in range(1, len(word)):
                self._rests.setdefault(word[:cut], []).append(word[cut:])

    @property
    def num_bytes(self) -> int:
        """The memory of the set, about; the vocabulary's own tables are shared."""
        return int(self._containing.nbytes) + 200 * sum(map(len, self._rests.values()))

    def completing_tokens(self, token_ids: Sequence[int]) -> TokenIds:
        """Return the tokens that would complete a word after these."""
        tail = self._texts.tail(token_ids, self._num_tail_bytes)
        rests = {
            rest for length in range(1, min(len(tail), self._num_tail_bytes) + 1) for rest in self._rests.get(tail[-length:], ())
        }
        if not rests:
            return self._containing
        return np.concatenate([self._containing, *map(self._texts.starting_with, rests)])
