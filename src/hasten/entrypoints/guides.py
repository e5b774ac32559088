"""``Guides``: the guides of requests, for one model."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from hasten.core.errors import InvalidRequest
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.core.thought_marks import ThoughtMarks
from hasten.sampling.guides.base import TokenGuide
from hasten.sampling.guides.thought_guide import Opening, ThoughtGuide, ThoughtTokens
from hasten.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hasten.sampling.guides.grammar_compiler import GrammarCompiler
    from hasten.sampling.guides.grammar_guide import GrammarGuide

_MAX_MARK_TOKENS = 64  # of the end of a prompt that is looked at


class Guides:
    """Makes the guide of a request. Threads may share it."""

    def __init__(
        self, tokenizer: TextTokenizer | None, vocab_size: int, eos_token_ids: tuple[int, ...], marks: ThoughtMarks | None = None
    ) -> None:
        """``vocab_size``: logits of a row. ``marks``: None for a model that writes no thoughts."""
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._marks = marks if tokenizer is not None else None
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def check(self, params: SamplingParams) -> None:
        """Compile what a guide needs, so that no step of the engine waits for it. Raises ``InvalidRequest``."""
        if params.structured_outputs is not None:
            self._grammars().compile(params.structured_outputs)
        if params.thinking_token_budget is not None and self._marks is None:
            raise InvalidRequest(
                "this model writes no thoughts that hasten knows, so they have no budget",
                got=f"thinking_token_budget={params.thinking_token_budget}",
                remedy="Leave it out, or name the model's reasoning_parser",
            )

    def has_compiled(self, form: StructuredOutputs) -> bool:
        """Return whether a form takes no time to compile."""
        return self._compiler is not None and self._compiler.has(form)

    def guide(self, request: Request) -> TokenGuide | None:
        """Return the guide of a request's outputs. Raises ``InvalidRequest``."""
        params = request.params
        if not params.is_guided:
            return None
        grammar = None if params.structured_outputs is None else self._grammar_guide(params)
        if self._marks is None:
            return grammar
        return ThoughtGuide(
            marks=self._thought_tokens,
            opening=self._opening(self._marks, request.prompt_token_ids),
            budget=params.thinking_token_budget,
            answer=grammar,
            eos_token_ids=self._eos_token_ids,
            vocab_size=self._vocab_size,
        )

    def _grammar_guide(self, params: SamplingParams) -> GrammarGuide:
        from hasten.sampling.guides.grammar_guide import GrammarGuide

        form, grammars = params.structured_outputs, self._grammars()
        assert form is not None
        renew = partial(grammars.renew, form)
        num_outputs = max(params.n, params.beam_width or 1)
        return GrammarGuide(grammars.compile(form), self._vocab_size, self._eos_token_ids, num_outputs, renew)

    def _grammars(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                if self._tokenizer is None:
                    raise InvalidRequest("structured_outputs needs a tokenizer, which this checkpoint has not")
                if not self._eos_token_ids:
                    raise InvalidRequest("structured_outputs needs an end token, and this checkpoint names none")
                from hasten.sampling.guides.grammar_compiler import GrammarCompiler

                self._compiler = GrammarCompiler(self._tokenizer.to_json(), self._vocab_size, self._eos_token_ids)
            return self._compiler

    @functools.cached_property
    def _thought_tokens(self) -> ThoughtTokens:
        marks = self._marks
        assert self._tokenizer is not None
        assert marks is not None
        start, closing, *ends = (tuple(self._tokenizer.encode_fragment(text)) for text in (marks.start, marks.closing, *marks.ends))
        return ThoughtTokens(start, tuple(ends), closing if closing[-len(ends[0]) :] == ends[0] else ends[0])

    def begun_thought(self, prompt_token_ids: Sequence[int]) -> str:
        """Return the start mark of the thought that a prompt ends in; an empty text if it ends in none."""
        if self._marks is None or self._opening(self._marks, prompt_token_ids) is not Opening.THOUGHT:
            return ""
        return self._marks.start

    def _opening(self, marks: ThoughtMarks, prompt_token_ids: Sequence[int]) -> Opening:
        """Return how a prompt ends, by the last mark in the answer that it begins.

        White space after a mark does not count.
        """
        assert self._tokenizer is not None
        begun = self._begun_answer(prompt_token_ids)
        tail = prompt_token_ids[-_MAX_MARK_TOKENS:] if begun is None else begun
        text = self._tokenizer.decode(tail, skip_special_tokens=False).rstrip()
        start, ends = marks.start.rstrip(), tuple(end.rstrip() for end in marks.ends)
        if begun is None:
            return Opening.THOUGHT if text.endswith(start) else Opening.ANSWER if text.endswith(ends) else Opening.EITHER
        last_start, last_end = text.rfind(start), max(text.rfind(end) for end in ends)
        return Opening.EITHER if last_start == last_end else Opening.THOUGHT if last_start > last_end else Opening.ANSWER

    @functools.cached_property
    def _headers(self) -> frozenset[int]:
        """The special tokens that are no marks of thoughts."""
        assert self._tokenizer is not None
        assert self._marks is not None
        in_marks = "".join((self._marks.start, *self._marks.ends))
        return frozenset(token_id for text, token_id in self._tokenizer.special_token_ids.items() if text not in in_marks)

    def _begun_answer(self, prompt_token_ids: Sequence[int]) -> Sequence[int] | None:
        """Return the tokens after the last special token that is no mark; None for a prompt without.

        Such a token is in a chat template's header. A plain text may tell of marks, and one at its beginning says nothing.
        """
        headers = self._headers
        last = next((i for i in range(len(prompt_token_ids) - 1, 0, -1) if prompt_token_ids[i] in headers), None)
        return None if last is None else prompt_token_ids[last + 1 :]
