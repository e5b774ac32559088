"""``GrammarGuide``: outputs that a grammar allows, by llguidance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NoReturn, TypeVar

import numpy as np
from llguidance import LLMatcher

from hasten.core.errors import HastenError
from hasten.core.request_fault import GRAMMAR_ENDED
from hasten.sampling.guides.base import MaskWords

SLOW_MASK = 3e-3  # seconds, usual ones take a tenth: drafts, of which every token takes a mask, would make other requests wait
MAX_FORCED_TOKENS = 4_096  # llguidance finds all of them anew after each token, in about 1 us per token
_SHARED_LIMIT = "too many states"  # in the error of a lexer, whose states all outputs of a grammar share
T = TypeVar("T")


@dataclass(slots=True)
class _Cursor:
    """A matcher and the tokens that it has read."""

    matcher: LLMatcher
    token_ids: list[int] = field(default_factory=list)
    forced: list[int] | None = None  # tokens after these; None if they are not known

    def forced_tokens(self) -> list[int]:
        if self.forced is None:
            self.forced = self.matcher.compute_ff_tokens()
        return self.forced

    def fill(self, mask_W: MaskWords) -> float:
        """Write the mask of the next token, and return the seconds of this thread that it took."""
        begin = time.thread_time()
        self.matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        return time.thread_time() - begin


class GrammarGuide:
    """Finds the state of the grammar after any tokens, from the nearest state that it has.

    Each of up to ``max_cursors`` cursors follows an output, and goes back and forth in it: the branches of a draft, or what a
    rejected draft had read. More outputs than cursors take more time and change nothing. No state follows an end token, so what a
    draft has after one gets the answers of the state before it.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_cursors: int,
        renew: Callable[[], LLMatcher] | None = None,
    ) -> None:
        """``matcher``: in its initial state; the guide owns it.

        ``renew``: returns another of the same grammar. Copies of a matcher share the states of their lexer, which are limited. So
        where a matcher fails, a new one tells whether the output itself exceeds the limit, or others did.
        """
        self._cursors, self._max_cursors, self._renew = [_Cursor(matcher)], max_cursors, renew
        self._eos_token_ids, self._vocab_size = eos_token_ids, vocab_size
        self.failure: str | None = None
        self._mask_seconds = 0.0  # that the last mask took
        self._mask_W = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def forced_tokens(self, token_ids: Sequence[int]) -> list[int]:
        return self._ask(token_ids, _Cursor.forced_tokens)

    def mask(self, token_ids: Sequence[int]) -> MaskWords:
        self._mask_seconds = self._ask(token_ids, lambda cursor: cursor.fill(self._mask_W))
        return self._mask_W

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        if self._mask_seconds > SLOW_MASK:
            return 0
        following = self._before_end(next_tokens)
        known = list(takewhile(lambda token_id: token_id < self._vocab_size, following))  # others would break the matcher
        if len(known) < len(following):
            return self._ask(token_ids, lambda cursor: cursor.matcher.validate_tokens(known))
        num_allowed = self._ask(token_ids, lambda cursor: cursor.matcher.validate_tokens(following))
        may_end = num_allowed == len(following) < len(next_tokens) and self.is_complete([*self._before_end(token_ids), *following])
        return num_allowed + may_end

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        return self._ask(token_ids, lambda cursor: cursor.matcher.is_accepting())

    def _ask(self, token_ids: Sequence[int], question: Callable[[_Cursor], T]) -> T:
        """Return the answer of a cursor that has read these tokens. Raises ``HastenError``."""
        tokens = self._before_end(token_ids)
        cursor = self._cursor(tokens)
        answer = question(cursor)
        if self._renew is not None and _SHARED_LIMIT in cursor.matcher.get_error():
            # Once: a grammar that needs new states in every step would make the other requests wait in every step.
            renew, self._renew = self._renew, None
            self._cursors = [_Cursor(renew())]
            cursor = self._cursor(tokens)
            answer = question(cursor)
        if len(cursor.forced or ()) > MAX_FORCED_TOKENS:
            self._fail(f"a forced text of {len(cursor.forced or ())} tokens", f"up to {MAX_FORCED_TOKENS}")
        if cursor.matcher.is_error():
            fault = cursor.matcher.get_error().strip().split("\n")[0][:200]
            self._fail(fault)
        return answer

    def _fail(self, got: str, allowed: str | None = None) -> NoReturn:
        error = HastenError(GRAMMAR_ENDED, got=got, allowed=allowed, remedy="Simplify it")
        self.failure = str(error)
        raise error

    def _cursor(self, tokens: list[int]) -> _Cursor:
        """Return a cursor that has read these tokens, or has failed."""
        shared, cursor = max(((_num_shared(each.token_ids, tokens), each) for each in self._cursors), key=lambda pair: pair[0])
        num_back = len(cursor.token_ids) - shared
        if num_back and len(self._cursors) < self._max_cursors:
            cursor = _Cursor(cursor.matcher.deep_copy(), list(cursor.token_ids))
            self._cursors.append(cursor)
        if num_back or shared < len(tokens):
            cursor.forced = None
        if num_back:
            cursor.matcher.rollback(num_back)
            del cursor.token_ids[shared:]
        if shared < len(tokens):
            cursor.token_ids += tokens[shared:]
            cursor.matcher.consume_tokens(tokens[shared:])
        return cursor

    def _before_end(self, token_ids: Sequence[int]) -> list[int]:
        tokens = list(token_ids)
        for end in self._eos_token_ids:
            if end in tokens:
                del tokens[tokens.index(end) :]
        return tokens


def _num_shared(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
