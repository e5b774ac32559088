"""``Completion``: one output of a request while it grows: its tokens, its text, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasten.core.output import CompletionOutput, Delta
from hasten.core.request import Request
from hasten.core.result import Finish, FinishReason, TokenLogprob, TokenOrigin
from hasten.sampling.guides.base import TokenGuide
from hasten.text.detokenizer import Detokenizer
from hasten.text.stop_strings import StopStrings

# Makes the detokenizer of one completion; None where the checkpoint has no tokenizer.
DetokenizerFactory = Callable[[Request], Detokenizer | None]


class Completion:
    def __init__(
        self,
        request: Request,
        index: int,
        detokenizer: Detokenizer | None,
        stop_strings: StopStrings | None,
        guide: TokenGuide | None = None,
    ) -> None:
        """``stop_strings`` are the request's; the completion takes a copy that shares their automaton."""
        self._request, self.index, self._detokenizer, self.guide = request, index, detokenizer, guide
        params = request.params
        self._stop_strings = None if stop_strings is None else stop_strings.restart()
        self._stop_ids = frozenset(params.stop_token_ids)
        self._eos_ids = frozenset(() if params.ignore_eos else request.eos_token_ids)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.origins: list[TokenOrigin] = []  # empty for a beam
        self.exit_layers: list[int] = []  # empty without an exit rule
        self._sent_text: list[str] = []  # one part per delta
        self._unsent_text = ""
        self._num_sent_tokens = 0
        self.score: float | None = None  # of a beam
        self.finish: Finish | None = None
        self.finish_sent = False

    def push(
        self, token_id: int, logprob: TokenLogprob | None, origin: TokenOrigin, exit_layer: int | None = None
    ) -> Finish | None:
        """Add one token, and return how the completion ended, if it did."""
        self.token_ids.append(token_id)
        self.origins.append(origin)
        if exit_layer is not None:
            self.exit_layers.append(exit_layer)
        if logprob is not None:
            self.logprobs.append(logprob)
        params = self._request.params
        if token_id in self._eos_ids or token_id in self._stop_ids:
            if token_id in self._stop_ids and params.include_stop_str_in_output:
                self._detokenize(token_id)
            return self.end(Finish(FinishReason.STOP, token_id if token_id in self._stop_ids else None))
        matched = self._detokenize(token_id)
        if matched is not None:
            return self.end(Finish(FinishReason.STOP, matched))
        if len(self.token_ids) == params.max_tokens:
            return self.end(Finish(FinishReason.LENGTH))
        return None

    def end(self, finish: Finish) -> Finish:
        """Take no more tokens. Text that was held back is released, unless a stop string cuts it off."""
        if not isinstance(finish.stop, str):
            held = self._detokenizer.flush() if self._detokenizer else ""
            if self._stop_strings:
                visible, matched = self._stop_strings.push(held)
                self._unsent_text += visible if matched is not None else visible + self._stop_strings.flush()
                if matched is not None:
                    finish = Finish(FinishReason.STOP, matched)
            else:
                self._unsent_text += held
        self.finish = finish
        return finish

    def set_beam(self, token_ids: Sequence[int], finish: Finish, score: float, logprobs: Sequence[TokenLogprob]) -> None:
        """Take all tokens of a beam at once, and end."""
        num_visible = len(token_ids) - (finish.reason is FinishReason.STOP)
        for token_id in token_ids[:num_visible]:
            self._detokenize(token_id)
        self.token_ids, self.logprobs = list(token_ids), list(logprobs)
        self.score = score
        self.end(finish)

    def delta(self) -> Delta:
        """Return what is new since the last delta."""
        start, text = self._num_sent_tokens, self._unsent_text
        self._num_sent_tokens, self._unsent_text = len(self.token_ids), ""
        self._sent_text.append(text)
        self.finish_sent = self.finish is not None
        return Delta(
            request_id=self._request.request_id,
            index=self.index,
            text=text,
            token_ids=tuple(self.token_ids[start:]),
            logprobs=tuple(self.logprobs[start:]) if self.logprobs else None,
            finish_reason=self.finish.reason if self.finish else None,
            stop_reason=self.finish.stop if self.finish else None,
            origins=tuple(self.origins[start:]),
            exit_layers=tuple(self.exit_layers[start:]),
        )

    def output(self) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text="".join(self._sent_text) + self._unsent_text,
            token_ids=tuple(self.token_ids),
            cumulative_logprob=sum(token.logprob for token in self.logprobs) if self.logprobs else None,
            score=self.score,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            finish_reason=self.finish.reason if self.finish else None,
            stop_reason=self.finish.stop if self.finish else None,
            origins=tuple(self.origins),
            exit_layers=tuple(self.exit_layers),
            is_complete=self._is_complete(),
        )

    def _is_complete(self) -> bool | None:
        """Return whether the visible output has the form of ``structured_outputs``; None without it."""
        if self.guide is None or self._request.params.structured_outputs is None or self.finish is None:
            return None
        if self.finish.reason not in (FinishReason.STOP, FinishReason.LENGTH) or isinstance(self.finish.stop, str):
            return False  # a stop string cuts the text within a token
        params = self._request.params
        shows_stop = params.include_stop_str_in_output and params.beam_width is None
        hidden = self._eos_ids if shows_stop else self._eos_ids | self._stop_ids
        return self.guide.is_complete(self.token_ids[:-1] if hidden.intersection(self.token_ids[-1:]) else self.token_ids)

    def _detokenize(self, token_id: int) -> str | None:
        """Add the token's text, and return the stop string that it completes, if any."""
        if self._detokenizer is None:
            return None
        text, matched = self._detokenizer.push(token_id), None
        if self._stop_strings is not None:
            may_stop = len(self.token_ids) >= self._request.params.min_tokens
            text, matched = self._stop_strings.push(text, may_stop=may_stop)
        self._unsent_text += text
        return matched
