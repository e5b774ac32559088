"""``GrammarGuide``: outputs that a grammar allows, by llguidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from llguidance import LLMatcher

from hasten.core.errors import HastenError
from hasten.sampling.guides.base import MaskWords

T = TypeVar("T")


@dataclass(slots=True)
class _Cursor:
    """A matcher and the tokens that it has read."""

    matcher: LLMatcher
    token_ids: list[int] = field(default_factory=list)


class GrammarGuide:
    """Finds the state of the grammar after any tokens, from the nearest state that it has.

    Each of up to ``max_cursors`` cursors follows an output, and goes back and forth in it: the branches of a draft, or what a
    rejected draft had read. More outputs than cursors take more time and change nothing.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, max_cursors: int, renew: Callable[[], LLMatcher] | None = None) -> None:
        """``matcher``: in its initial state; the guide owns it.

        ``renew``: returns another of the same grammar. Copies of a matcher share the states of their lexer, which are limited. So
        where a matcher fails, a new one tells whether the output itself exceeds the limit, or others did.
        """
        self._cursors, self._max_cursors, self._renew = [_Cursor(matcher)], max_cursors, renew
        self._mask_W = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def forced_tokens(self, token_ids: Sequence[int]) -> list[int]:
        return self._ask(token_ids, lambda matcher: matcher.compute_ff_tokens())

    def mask(self, token_ids: Sequence[int]) -> MaskWords:
        self._ask(token_ids, lambda matcher: matcher.unsafe_compute_mask_ptr(self._mask_W.ctypes.data, self._mask_W.nbytes))
        return self._mask_W

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        return self._ask(token_ids, lambda matcher: matcher.validate_tokens(list(next_tokens)))

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        return self._ask(token_ids, lambda matcher: matcher.is_accepting())

    def _ask(self, token_ids: Sequence[int], question: Callable[[LLMatcher], T]) -> T:
        """Return the answer of a matcher that has read these tokens. Raises ``HastenError``."""
        matcher = self._matcher(token_ids)
        answer = question(matcher)
        if matcher.is_error() and self._renew is not None:
            self._cursors = [_Cursor(self._renew())]
            matcher = self._matcher(token_ids)
            answer = question(matcher)
        if matcher.is_error():
            fault = matcher.get_error().strip().split("\n")[0][:200]
            raise HastenError("the grammar of structured_outputs cannot go on", got=fault, remedy="Simplify it")
        return answer

    def _matcher(self, token_ids: Sequence[int]) -> LLMatcher:
        """Return a matcher that has read these tokens, or has failed."""
        tokens = list(token_ids)
        shared, cursor = max(((_num_shared(each.token_ids, tokens), each) for each in self._cursors), key=lambda pair: pair[0])
        num_back = len(cursor.token_ids) - shared
        if num_back and len(self._cursors) < self._max_cursors:
            cursor = _Cursor(cursor.matcher.deep_copy(), list(cursor.token_ids))
            self._cursors.append(cursor)
        matcher = cursor.matcher
        if num_back:
            matcher.rollback(num_back)
            del cursor.token_ids[shared:]
        if shared < len(tokens):
            cursor.token_ids += tokens[shared:]
            matcher.consume_tokens(tokens[shared:])
        return matcher


def _num_shared(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
