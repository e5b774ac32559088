"""The engine's memory of one request: its answers, its beam search, its times. What the caller sees is made from it."""

from __future__ import annotations

from hasten.core.output import Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request
from hasten.core.result import DraftOutcome, Finish, FinishReason, TokenLogprob
from hasten.engine.completion import Completion, DetokenizerFactory
from hasten.scheduling.sequence import ScheduledRequest
from hasten.search.beam import BeamSearch


class RequestState:
    def __init__(self, request: Request, entry: ScheduledRequest, detokenizer: DetokenizerFactory) -> None:
        self.request, self._entry = request, entry
        params = request.params
        self.answers = [Completion(request, index, detokenizer(request)) for index in range(params.n)]
        self.search = beam_search(request) if params.beam_width is not None else None
        # Of the lines that a search still knows, by their tokens; empty where nobody asked for log-probabilities.
        self.beam_logprobs: dict[tuple[int, ...], tuple[TokenLogprob, ...]] = {}
        self._draft_outcomes: list[DraftOutcome] = []
        self.error: str | None = None
        self._first_token: float | None = None
        self._finished: float | None = None

    @property
    def finished(self) -> bool:
        return None not in [answer.finish for answer in self.answers]

    def record_time(self, now: float) -> None:
        """A step that gave this request a token has ended."""
        if self._first_token is None:
            self._first_token = now
        if self.finished:
            self._finished = now

    def record_draft(self, outcome: DraftOutcome) -> None:
        self._draft_outcomes.append(outcome)

    def end(self, reason: FinishReason, now: float, error: str | None = None) -> None:
        """Whatever has not ended yet ends here."""
        self.error, self._finished = error, now
        for answer in self.answers:
            if answer.finish is None:
                answer.end(Finish(reason))

    def conclude_search(self) -> None:
        """The beams are done: the best of them become the answers."""
        assert self.search is not None
        hypotheses = self.search.best(len(self.answers))
        # A tiny vocabulary, or one that is nearly all forbidden, may hold fewer lines than were asked for.
        self.answers = self.answers[: len(hypotheses)]
        for answer, best in zip(self.answers, hypotheses, strict=True):
            stop = next((token for token in best.token_ids[-1:] if token in self.request.params.stop_token_ids), None)
            finish = Finish(FinishReason.STOP, stop) if best.finished else Finish(FinishReason.LENGTH)
            answer.fill(best.token_ids, finish, best.score, self.beam_logprobs.get(best.token_ids, ()))

    def deltas(self, answers: list[Completion]) -> list[Delta]:
        """What is new in these answers; the last delta of the request carries the whole output."""
        deltas = [answer.delta() for answer in answers if not answer.reported]
        if deltas and self.finished:
            deltas[-1] = _with_output(deltas[-1], self.output())
        return deltas

    def output(self) -> RequestOutput:
        layers = [layer for answer in self.answers for layer in answer.exit_layers]
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=None,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=tuple(answer.output() for answer in self.answers),
            finished=self.finished,
            seed=self.request.params.seed,
            error=self.error,
            metrics=RequestMetrics(
                arrival=self.request.arrival,
                first_scheduled=self._entry.first_scheduled,
                first_token=self._first_token,
                finished=self._finished,
                num_prompt_tokens=len(self.request.prompt_token_ids),
                num_cached_tokens=self._entry.num_cached_tokens,
                num_output_tokens=sum(len(answer.token_ids) for answer in self.answers),
                num_preemptions=self._entry.num_preemptions,
                num_drafts=len(self._draft_outcomes),
                num_drafted_tokens=sum(outcome.num_drafted for outcome in self._draft_outcomes),
                num_accepted_tokens=sum(outcome.num_accepted for outcome in self._draft_outcomes),
                acceptance=self.request.params.acceptance,
                exit_rule=self.request.params.exit_rule,
                mean_exit_layer=sum(layers) / len(layers) if layers else None,
            ),
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


def _with_output(delta: Delta, output: RequestOutput) -> Delta:
    return Delta(
        request_id=delta.request_id,
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        origins=delta.origins,
        exit_layers=delta.exit_layers,
        output=output,
    )
