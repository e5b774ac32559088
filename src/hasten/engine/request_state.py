"""``RequestState``: completions, beam search, times and counts of one request in the engine."""

from __future__ import annotations

import dataclasses
import logging

from hasten.core.output import CompletionOutput, Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request
from hasten.core.result import DraftOutcome, Finish, FinishReason, TokenLogprob
from hasten.engine.completion import Completion, DetokenizerFactory
from hasten.sampling.guides.base import TokenGuide
from hasten.scheduling.sequence import ScheduledRequest
from hasten.search.beam import BeamSearch
from hasten.text.stop_strings import StopStrings

log = logging.getLogger(__name__)


class RequestState:
    def __init__(self, scheduled: ScheduledRequest, detokenizer: DetokenizerFactory, guide: TokenGuide | None) -> None:
        self.request, self._scheduled = scheduled.request, scheduled
        params = self.request.params
        stop = StopStrings(params.stop, params.include_stop_str_in_output) if params.stop else None
        self.guide = guide
        self.completions = [Completion(self.request, i, detokenizer(self.request), stop, guide) for i in range(params.n)]
        self.search = beam_search(self.request) if params.beam_width is not None else None
        # By token ids, for live beams and held hypotheses; empty unless log-probabilities are wanted.
        self.beam_logprobs: dict[tuple[int, ...], tuple[TokenLogprob, ...]] = {}
        self._draft_outcomes: list[DraftOutcome] = []
        self.num_shareable_tokens = 0  # counted when the request was added
        self.error: str | None = None
        self._first_token: float | None = None
        self._finished: float | None = None

    @property
    def finished(self) -> bool:
        return None not in [completion.finish for completion in self.completions]

    def record_draft(self, outcome: DraftOutcome) -> None:
        self._draft_outcomes.append(outcome)

    def end(self, reason: FinishReason, now: float, error: str | None = None) -> None:
        """End all completions that still run. Text that cannot be decoded is left out."""
        self.error, self._finished = error, now
        for completion in self.completions:
            if completion.finish is None:
                try:
                    completion.end(Finish(reason))
                except Exception:  # often the error that ends the request
                    log.exception("request %s: text that was held back cannot be decoded", self.request.request_id)
                    completion.finish = Finish(reason)

    def finish_beam_search(self) -> None:
        """Turn the best hypotheses into completions. A tiny or masked vocabulary may yield fewer than ``n``."""
        assert self.search is not None
        hypotheses = self.search.best(len(self.completions))
        self.completions = self.completions[: len(hypotheses)]
        for completion, best in zip(self.completions, hypotheses, strict=True):
            stop = next((token for token in best.token_ids[-1:] if token in self.request.params.stop_token_ids), None)
            finish = Finish(FinishReason.STOP, stop) if best.finished else Finish(FinishReason.LENGTH)
            completion.set_beam(best.token_ids, finish, best.score, self.beam_logprobs.get(best.token_ids, ()))

    def deltas(self, completions: list[Completion], now: float | None = None) -> list[Delta]:
        """Return what is new in these completions. The last delta of the request carries its whole output.

        ``now``: the end of the step that gave them tokens; None: no step did.
        """
        finished = self.finished
        is_first = now is not None and self._first_token is None
        if now is not None:
            self._first_token = now if self._first_token is None else self._first_token
            self._finished = now if finished else None
        deltas = [completion.delta() for completion in completions if not completion.finish_sent]
        if deltas and is_first:
            deltas[0] = dataclasses.replace(deltas[0], metrics=dataclasses.replace(self._metrics(), first_token=now))
        if deltas and finished:
            deltas[-1] = dataclasses.replace(deltas[-1], output=self.output())
        return deltas

    def last_delta(self, error: str, now: float) -> Delta:
        """Return a delta that ends the request with an error.

        It has the tokens but no text and no log-probabilities: it reads nothing that may be broken.
        """
        outputs = [
            CompletionOutput(index=each.index, text="", token_ids=tuple(each.token_ids), finish_reason=FinishReason.ERROR)
            for each in self.completions
        ]
        output = RequestOutput(
            request_id=self.request.request_id,
            prompt=None,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(outputs),
            finished=True,
            seed=self.request.params.seed,
            error=error,
            metrics=dataclasses.replace(self._metrics(), finished=now),
        )
        return Delta(
            request_id=self.request.request_id,
            index=0,
            text="",
            token_ids=(),
            finish_reason=FinishReason.ERROR,
            output=output,
        )

    def output(self) -> RequestOutput:
        layers = [layer for completion in self.completions for layer in completion.exit_layers]
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=None,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(completion.output() for completion in self.completions),
            finished=self.finished,
            seed=self.request.params.seed,
            error=self.error,
            metrics=dataclasses.replace(
                self._metrics(),
                first_token=self._first_token,
                finished=self._finished,
                num_drafts=len(self._draft_outcomes),
                num_drafted_tokens=sum(outcome.num_drafted for outcome in self._draft_outcomes),
                num_accepted_tokens=sum(outcome.num_accepted for outcome in self._draft_outcomes),
                acceptance=self.request.params.acceptance,
                exit_rule=self.request.params.exit_rule,
                mean_exit_layer=sum(layers) / len(layers) if layers else None,
            ),
        )

    def _metrics(self) -> RequestMetrics:
        """Return what is known however the request ends."""
        num_cached = self._scheduled.num_cached_tokens
        return RequestMetrics(
            arrival=self.request.arrival,
            first_scheduled=self._scheduled.first_scheduled,
            num_prompt_tokens=self.request.num_initial_tokens,
            num_cached_tokens=num_cached,
            # The prefix cache has the outputs of earlier requests, too.
            num_shareable_tokens=max(num_cached, self.num_shareable_tokens),
            num_pinned_tokens=self._scheduled.num_pinned_tokens,
            new_pins=tuple(self._scheduled.new_pins),
            num_output_tokens=sum(len(completion.token_ids) for completion in self.completions),
            num_preemptions=self._scheduled.num_preemptions,
        )


def beam_search(request: Request) -> BeamSearch:
    params = request.params
    assert params.beam_width is not None
    assert params.max_tokens is not None
    eos = () if params.ignore_eos else request.eos_token_ids
    return BeamSearch(
        beam_width=params.beam_width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        num_return_sequences=params.n,
        eos_token_ids=tuple(dict.fromkeys((*eos, *params.stop_token_ids))),
        max_new_tokens=params.max_tokens,
    )
