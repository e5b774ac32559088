"""``ThoughtGuide``: a thought within its budget, then an answer, which may have a guide of its own.

::

    <think> 12 * 12 is 144 </think> {"answer": 144}
            ^ thought       ^ closed once            ^ answer: the grammar applies here alone
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hasten.sampling.guides.base import MaskWords, TokenGuide


class Opening(enum.Enum):
    """How the prompt ends."""

    THOUGHT = "thought"  # with the start of a thought
    ANSWER = "answer"  # with a closed thought: none may follow
    EITHER = "either"  # the output itself may start a thought


@dataclass(frozen=True, slots=True)
class ThoughtTokens:
    """``ThoughtMarks`` as token ids; none is empty."""

    start: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    closing: tuple[int, ...]  # ends with the first of ``ends``


@dataclass(frozen=True, slots=True)
class ThoughtGuide:
    """Closes a thought that uses up its budget, and guides the answer after it.

    A thought holds no end token of the output, so that the answer follows. Marks of one token stand once, and no thought begins
    within an answer: its budget would not hold.
    """

    marks: ThoughtTokens
    opening: Opening
    budget: int | None  # tokens of a thought, its marks not included; None: no limit
    answer: TokenGuide | None
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    _thought_mask_W: MaskWords = field(init=False)
    _answer_mask_W: MaskWords = field(init=False)  # of an answer without a guide, after a thought
    _only_answer_mask_W: MaskWords = field(init=False)  # of an answer without a guide and without a thought in the output

    def __post_init__(self) -> None:
        # Marks of several tokens are texts, which no mask can keep out.
        single_marks = [mark[0] for mark in (self.marks.start, *self.marks.ends) if len(mark) == 1]
        starts = self.marks.start if len(self.marks.start) == 1 else ()
        object.__setattr__(self, "_thought_mask_W", _all_but((*self.eos_token_ids, *starts), self.vocab_size))
        object.__setattr__(self, "_answer_mask_W", _all_but(single_marks, self.vocab_size))
        object.__setattr__(self, "_only_answer_mask_W", _all_but(starts, self.vocab_size))

    @property
    def failure(self) -> str | None:
        return None if self.answer is None else self.answer.failure

    def forced_tokens(self, token_ids: Sequence[int]) -> Sequence[int]:
        tokens = list(token_ids)
        thought = self._thought_start(tokens)
        if thought is None:
            if self._may_start_thought(tokens):
                # A grammar could not read the beginning of a mark, so what has begun must go on.
                return self.marks.start[len(tokens) :] if tokens and self.answer is not None else ()
            return () if self.answer is None else self.answer.forced_tokens(tokens)
        end = _find(tokens, self.marks.ends, thought)
        if end is not None:
            return () if self.answer is None else self.answer.forced_tokens(tokens[end:])
        return self._closing_tokens(tokens[thought:])

    def mask(self, token_ids: Sequence[int]) -> MaskWords | None:
        tokens = list(token_ids)
        thought = self._thought_start(tokens)
        if thought is None:
            if self.answer is None:
                return None if self._may_start_thought(tokens) else self._only_answer_mask_W
            mask_W = self.answer.mask(tokens)
            return _with(mask_W, self.marks.start[0]) if mask_W is not None and self._may_start_thought(tokens) else mask_W
        end = _find(tokens, self.marks.ends, thought)
        if end is None:
            return self._thought_mask_W
        return self._answer_mask_W if self.answer is None else self.answer.mask(tokens[end:])

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        tokens = list(token_ids)
        for i, token_id in enumerate(next_tokens):
            answer = self._answer_start(tokens)
            if answer is not None and self.answer is not None and not self._may_start_thought(tokens):
                return i + self.answer.num_allowed(tokens[answer:], next_tokens[i:])
            forced = self.forced_tokens(tokens)
            mask_W = None if forced else self.mask(tokens)
            if (forced and forced[0] != token_id) or (mask_W is not None and not _has(mask_W, token_id)):
                return i
            tokens.append(token_id)
        return len(next_tokens)

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        tokens = list(token_ids)
        answer = self._answer_start(tokens)
        return answer is not None and (self.answer is None or self.answer.is_complete(tokens[answer:]))

    def _answer_start(self, tokens: list[int]) -> int | None:
        """Return where the answer begins; None within a thought."""
        thought = self._thought_start(tokens)
        return 0 if thought is None else _find(tokens, self.marks.ends, thought)

    def _thought_start(self, tokens: list[int]) -> int | None:
        """Return where the thought begins, after its mark; None without a thought."""
        if self.opening is Opening.THOUGHT:
            return 0
        start = self.marks.start
        if self.opening is Opening.EITHER and tuple(tokens[: len(start)]) == start:
            return len(start)
        return None

    def _may_start_thought(self, tokens: list[int]) -> bool:
        """Return whether the tokens are the beginning of a thought's mark, or none."""
        return self.opening is Opening.EITHER and tuple(tokens) == self.marks.start[: len(tokens)]

    def _closing_tokens(self, thought: list[int]) -> tuple[int, ...]:
        """Return what closes a thought that has used up its budget; the rest of a closing that has begun."""
        if self.budget is None or len(thought) < self.budget:
            return ()
        closing = self.marks.closing
        num_begun = next(n for n in range(min(len(closing) - 1, len(thought)), -1, -1) if _ends_with(thought, closing[:n]))
        return closing[num_begun:]


def _find(tokens: list[int], marks: Sequence[tuple[int, ...]], start: int) -> int | None:
    """Return the position after the first occurrence of one of the marks from ``start`` on."""
    found = [_find_one(tokens, mark, start) for mark in marks]
    return min((end for end in found if end is not None), default=None)


def _find_one(tokens: list[int], mark: tuple[int, ...], start: int) -> int | None:
    while True:
        try:
            start = tokens.index(mark[0], start)
        except ValueError:
            return None
        if tuple(tokens[start : start + len(mark)]) == mark:
            return start + len(mark)
        start += 1


def _ends_with(tokens: list[int], ending: tuple[int, ...]) -> bool:
    return not ending or tuple(tokens[-len(ending) :]) == ending


def _all_but(token_ids: Sequence[int], vocab_size: int) -> MaskWords:
    mask_W = np.full((vocab_size + 31) // 32, -1, dtype=np.int32)
    for token_id in token_ids:
        if token_id < vocab_size:
            mask_W.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << token_id % 32) & 0xFFFFFFFF)
    return mask_W


def _with(mask_W: MaskWords, token_id: int) -> MaskWords:
    """Return a copy that allows one more token."""
    copy_W = mask_W.copy()
    copy_W.view(np.uint32)[token_id // 32] |= np.uint32(1 << token_id % 32)
    return copy_W


def _has(mask_W: MaskWords, token_id: int) -> bool:
    return bool(int(mask_W.view(np.uint32)[token_id // 32]) >> token_id % 32 & 1)
