"""``Guides``: the guides of requests, for one model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hasten.core.errors import InvalidRequest
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.guides.base import TokenGuide
from hasten.text.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from hasten.sampling.guides.grammar_compiler import GrammarCompiler


class Guides:
    """Makes the guide of a request. Threads may share it."""

    def __init__(self, tokenizer: TextTokenizer | None, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        """``vocab_size``: logits of a row."""
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    def check(self, params: SamplingParams) -> None:
        """Compile what a guide needs, so that no step of the engine waits for it. Raises ``InvalidRequest``."""
        if params.structured_outputs is not None:
            self._grammars().compile(params.structured_outputs)

    def guide(self, request: Request) -> TokenGuide | None:
        """Return the guide of a request's outputs. Raises ``InvalidRequest``."""
        params = request.params
        if params.structured_outputs is None:
            return None
        from hasten.sampling.guides.grammar_guide import GrammarGuide

        matcher = self._grammars().compile(params.structured_outputs)
        return GrammarGuide(matcher, self._vocab_size, max(params.n, params.beam_width or 1))

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
