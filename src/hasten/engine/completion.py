"""One answer in the making: its tokens, its text, and whether it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hasten.core.output import CompletionOutput, Delta
from hasten.core.request import Request
from hasten.core.result import Finish, FinishReason, TokenLogprob, TokenOrigin
from hasten.text.detokenizer import Detokenizer
from hasten.text.stop_strings import StopStrings

# Makes the detokenizer of one answer; None where the checkpoint has no tokenizer.
DetokenizerFactory = Callable[[Request], Detokenizer | None]


class Completion:
    def __init__(self, request: Request, index: int, detokenizer: Detokenizer | None) -> None:
        self._request, self.index, self._detokenizer = request, index, detokenizer
        params = request.params
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._stop_ids = frozenset(params.stop_token_ids)
        self._eos_ids = frozenset(() if params.ignore_eos else request.eos_token_ids)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.origins: list[TokenOrigin] = []  # of a beam: none
        self.exit_layers: list[int] = []  # of an answer whose request has an exit rule
        self._told: list[str] = []  # the text, as the deltas cut it
        self._untold = ""  # what came after them
        self.score: float | None = None  # of a beam
        self.finish: Finish | None = None
        self._sent_tokens = 0
        self.reported = False  # its finish has been told in a delta

    @property
    def text(self) -> str:
        return "".join(self._told) + self._untold

    def push(
        self, token_id: int, logprob: TokenLogprob | None, origin: TokenOrigin, exit_layer: int | None = None
    ) -> Finish | None:
        """Take one token; returns how the answer ended, if it did."""
        self.token_ids.append(token_id)
        self.origins.append(origin)
        if exit_layer is not None:
            self.exit_layers.append(exit_layer)
        if logprob is not None:
            self.logprobs.append(logprob)
        params = self._request.params
        if token_id in self._eos_ids or token_id in self._stop_ids:
            if token_id in self._stop_ids and params.include_stop_str_in_output:
                self._read(token_id)
            return self.end(Finish(FinishReason.STOP, token_id if token_id in self._stop_ids else None))
        matched = self._read(token_id)
        if matched is not None:
            return self.end(Finish(FinishReason.STOP, matched))
        if len(self.token_ids) == params.max_tokens:
            return self.end(Finish(FinishReason.LENGTH))
        return None

    def end(self, finish: Finish) -> Finish:
        """No more tokens: the text that was held back is released, unless a stop string cut it off."""
        if not isinstance(finish.stop, str):
            rest = self._detokenizer.flush() if self._detokenizer else ""
            if self._stops:
                visible, matched = self._stops.push(rest)
                self._untold += visible if matched is not None else visible + self._stops.flush()
                if matched is not None:
                    finish = Finish(FinishReason.STOP, matched)
            else:
                self._untold += rest
        self.finish = finish
        return finish

    def fill(self, token_ids: Sequence[int], finish: Finish, score: float, logprobs: Sequence[TokenLogprob]) -> None:
        """The whole answer at once: a beam that won."""
        ending = token_ids[-1:] if finish.reason is FinishReason.STOP else ()
        for token_id in token_ids[: len(token_ids) - len(ending)]:
            self._read(token_id)
        self.token_ids, self.logprobs = list(token_ids), list(logprobs)
        self.score = score
        self.end(finish)

    def delta(self) -> Delta:
        """What came since the last delta."""
        tokens, text = self.token_ids[self._sent_tokens :], self._untold
        logprobs = tuple(self.logprobs[self._sent_tokens :]) if self.logprobs else None
        origins, exit_layers = tuple(self.origins[self._sent_tokens :]), tuple(self.exit_layers[self._sent_tokens :])
        self._sent_tokens, self._untold = len(self.token_ids), ""
        self._told.append(text)
        self.reported = self.finish is not None
        return Delta(
            request_id=self._request.request_id,
            index=self.index,
            text=text,
            token_ids=tuple(tokens),
            logprobs=logprobs,
            finish_reason=self.finish.reason if self.finish else None,
            stop_reason=self.finish.stop if self.finish else None,
            origins=origins,
            exit_layers=exit_layers,
        )

    def output(self) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=tuple(self.token_ids),
            cumulative_logprob=sum(t.logprob for t in self.logprobs) if self.logprobs else None,
            score=self.score,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
            finish_reason=self.finish.reason if self.finish else None,
            stop_reason=self.finish.stop if self.finish else None,
            origins=tuple(self.origins),
            exit_layers=tuple(self.exit_layers),
        )

    def _read(self, token_id: int) -> str | None:
        """Add the token's text; returns the stop string that it completed, if any."""
        if self._detokenizer is None:
            return None
        text = self._detokenizer.push(token_id)
        if self._stops is None:
            self._untold += text
            return None
        visible, matched = self._stops.push(text, armed=len(self.token_ids) >= self._request.params.min_tokens)
        self._untold += visible
        return matched
