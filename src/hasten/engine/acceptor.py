"""From logits to accepted tokens: sampling, beams, text and stops. It knows no blocks and decides no schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core.concat_view import ConcatView
from hasten.core.draft import Draft
from hasten.core.plan import RunnerOutput
from hasten.core.result import Continuation, DraftOutcome, Finish, FinishReason, StepResult, TokenOrigin
from hasten.core.sampling_params import SamplingParams
from hasten.engine.completion import Completion
from hasten.engine.request_state import RequestState
from hasten.sampling.history import TokenHistory
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler, rows_are_finite
from hasten.scheduling.sequence import Sequence
from hasten.search.base import BeamStep
from hasten.search.candidates import best_candidates
from hasten.speculative.acceptance import acceptance
from hasten.speculative.acceptance.base import Guess
from hasten.speculative.acceptance.counter_rng import CounterRng

UNUSABLE = "the model's logits for this request are not finite numbers (NaN or infinity)"
NO_TOKEN = "the settings of this request leave no token to choose: its masks, bias and penalties forbid all of them"
ENDED = -2  # no node


class _Line(NamedTuple):
    """A row of logits and the answer that may take its token."""

    row: int
    sequence: Sequence
    answer: Completion
    node: int  # of the sequence's draft: the row has seen the path to it. -1: none of the draft
    depth: int | None  # how many layers computed the row, where a request asked for fewer than all


@dataclass(slots=True)
class _Accepted:
    """A step's result in the making."""

    continuations: list[Continuation] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    corrupted: list[int] = field(default_factory=list)
    draft_outcomes: list[DraftOutcome] = field(default_factory=list)
    exit_layers: Mapping[int, int] = field(default_factory=dict)
    answers: dict[str, list[Completion]] = field(default_factory=dict)  # request id -> answers with something new

    def take(self, line: _Line, token_id: int, finish: Finish | None) -> None:
        """Lines of one path come one after the other."""
        before: tuple[int, ...] = ()
        if line.node >= 0:
            before = self.continuations.pop().token_ids
        else:
            self.answers.setdefault(line.sequence.request.request_id, []).append(line.answer)
        self.continuations.append(Continuation(line.sequence.id, (*before, token_id), finish, line.answer.index))

    def result(self) -> StepResult:
        return StepResult(
            tuple(self.continuations), tuple(self.dropped), tuple(self.corrupted), tuple(self.draft_outcomes), self.exit_layers
        )


class Acceptor:
    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def accept(
        self, output: RunnerOutput, sequences: list[Sequence], records: Mapping[str, RequestState], now: float
    ) -> tuple[StepResult, dict[str, list[Completion]]]:
        """``sequences[r]`` computed row r of the logits; with a draft it has a row for its last token and one for each node.

        Returns what the scheduler must know, and which answers have news.

        Mutates the records. A row without rows_are_finite numbers ends its own request and no other.
        """
        logits_RV, accepted = output.logits, _Accepted(exit_layers=_early(output, sequences))
        beams: dict[str, list[int]] = {}
        lines: list[_Line] = []
        before: Sequence | None = None
        node = -1
        for row, sequence in enumerate(sequences):
            node = node + 1 if sequence is before else -1
            before = sequence
            record = records[sequence.request.request_id]
            if record.search is not None:
                beams.setdefault(record.request.request_id, []).append(row)
            elif sequence.num_output_tokens == 0:
                lines += [_Line(row, sequence, answer, -1, output.exit_layers.get(row)) for answer in record.answers]
            else:
                lines.append(_Line(row, sequence, record.answers[sequence.index], node, output.exit_layers.get(row)))
        self._sample(logits_RV, lines, records, accepted, now)
        for request_id, rows in beams.items():
            self._search(logits_RV, [(row, sequences[row]) for row in rows], records[request_id], accepted, now)
        return accepted.result(), accepted.answers

    def _sample(
        self, logits_RV: Tensor, lines: list[_Line], records: Mapping[str, RequestState], accepted: _Accepted, now: float
    ) -> None:
        """Find the token after every node of the drafts, and keep those that a path of them leads to."""
        if not lines:
            return
        taken = [line.row for line in lines]
        if taken != list(range(len(logits_RV))):  # beams beside, or one row feeding n answers
            logits_RV = logits_RV[torch.tensor(taken, device=logits_RV.device)]
        views = [_view(line.sequence, line.answer.index, line.node) for line in lines]
        tokens = self._sampler.sample(logits_RV, views)
        expected = -1  # the node that the path goes on from
        for i, (line, token) in enumerate(zip(lines, tokens, strict=True)):
            sequence, record = line.sequence, records[line.sequence.request.request_id]
            expected = -1 if line.node < 0 else expected
            if record.error is not None or line.node != expected:
                continue
            if token is None:
                usable_row = all(rows_are_finite(logits_RV[i : i + 1]))
                error = NO_TOKEN if usable_row else UNUSABLE
                self._fail(sequence.scheduled_request.sequences, record, accepted, now, error, corrupted=not usable_row)
                continue
            draft = sequence.draft or None  # asked about several times a row, and None answers faster than an empty one
            if draft and not views[i].params.exact:
                token = self._judge(logits_RV[i : i + 1], views[i], _guesses(draft, line.node), token)
            child = draft.find_child(line.node, token.token_id) if draft else None
            finish = line.answer.push(token.token_id, token.logprob, _origin(draft, line.node, child), line.depth)
            accepted.take(line, token.token_id, finish)
            expected = child if child is not None and finish is None else ENDED
            if draft and expected == ENDED:
                guessed = len(accepted.continuations[-1].token_ids) - (child is None)
                outcome = DraftOutcome(len(draft), max(draft.depths), guessed)
                accepted.draft_outcomes.append(outcome)
                record.record_draft(outcome)

    def _judge(self, logits_1V: Tensor, view: SamplingRow, guesses: Several[Guess], drawn: SampledToken) -> SampledToken:
        """The token by the rule of the request, if it was left a choice."""
        if not guesses:
            return drawn
        (p_V,) = self._sampler.probabilities(logits_1V, [view])
        token_id = acceptance(view.params).choose(p_V, guesses, CounterRng(view))
        return SampledToken(token_id, self._sampler.logprobs(logits_1V, [view], [token_id]).get(0))

    def _search(
        self, logits_RV: Tensor, rows: list[tuple[int, Sequence]], record: RequestState, accepted: _Accepted, now: float
    ) -> None:
        """One step of a beam search: rows in the order of the beams."""
        search = record.search
        assert search is not None
        rows = sorted(rows, key=lambda r: r[1].index)
        logits_BV = logits_RV[torch.tensor([row for row, _ in rows], device=logits_RV.device)]
        if not all(rows_are_finite(logits_BV)):
            return self._fail([sequence for _, sequence in rows], record, accepted, now, UNUSABLE, corrupted=True)
        views = [_view(sequence, sequence.index) for _, sequence in rows]
        scores = self._sampler.beam_logprobs(logits_BV, views)
        lines = search.beam_token_ids
        candidates = best_candidates(scores, search.beam_scores, search.num_candidates)
        if not candidates:
            return self._fail([sequence for _, sequence in rows], record, accepted, now, NO_TOKEN)
        step = search.advance(candidates)
        if record.request.params.logprobs is not None:
            self._note_logprobs(logits_BV, views, lines, step, record)
        if step.done:
            record.conclude_search()
            accepted.dropped += [sequence.id for _, sequence in rows]
            accepted.answers[record.request.request_id] = list(record.answers)
            return None
        parents = set()
        for index, beam in enumerate(step.beams):
            parent = rows[beam.parent][1].id
            parents.add(parent)
            accepted.continuations.append(Continuation(parent, (beam.token_id,), index=index))
        accepted.dropped += [sequence.id for _, sequence in rows if sequence.id not in parents]
        return None

    def _note_logprobs(
        self, logits_BV: Tensor, views: list[SamplingRow], lines: tuple[tuple[int, ...], ...], step: BeamStep, record: RequestState
    ) -> None:
        """Raw log-probabilities of every line that lives on or has just ended; lines that lost are forgotten."""
        assert record.search is not None
        taken = [*step.beams, *step.ended]
        parents = [candidate.parent for candidate in taken]
        rows = logits_BV[torch.tensor(parents, dtype=torch.long, device=logits_BV.device)]
        tokens = [candidate.token_id for candidate in taken]
        found = self._sampler.logprobs(rows, [views[parent] for parent in parents], tokens)
        held = {hypothesis.token_ids for hypothesis in record.search.hypotheses}
        before = record.beam_logprobs
        record.beam_logprobs = {line: logprobs for line, logprobs in before.items() if line in held}
        for i, candidate in enumerate(taken):
            line = lines[candidate.parent]
            record.beam_logprobs[(*line, candidate.token_id)] = (*before.get(line, ()), found[i])

    def _fail(
        self,
        sequences: Iterable[Sequence],
        record: RequestState,
        accepted: _Accepted,
        now: float,
        error: str,
        *,
        corrupted: bool = False,
    ) -> None:
        """End a request that cannot go on. ``corrupted``: its numbers are not to be trusted, so nobody may reuse its blocks."""
        if record.error is None:
            record.end(FinishReason.ERROR, now, error)
            ending = accepted.corrupted if corrupted else accepted.dropped
            ending += [sequence.id for sequence in sequences]
            gone = {*accepted.corrupted, *accepted.dropped}
            accepted.continuations = [c for c in accepted.continuations if c.parent not in gone]
            accepted.answers[record.request.request_id] = list(record.answers)


def _early(output: RunnerOutput, sequences: list[Sequence]) -> dict[int, int]:
    """Sequences whose last token left before it had to."""
    early = {row: depth for row, depth in output.exit_layers.items() if depth != output.num_layers}
    return {sequences[row].id: depth for row, depth in early.items() if sequences[row].exit_layer is None}


def _view(sequence: Sequence, index: int, node: int = -1) -> SamplingRow:
    """``node``: as if the path to it had been accepted."""
    request = sequence.request
    num_prompt = len(request.prompt_token_ids)
    if node >= 0:
        ahead = ConcatView(sequence.token_ids, _path_to(sequence.draft, node))
        return SamplingRow(request.params, ahead, num_prompt, request.eos_token_ids, index)
    if sequence.history is None and _counts(request.params):
        sequence.history = TokenHistory(num_prompt)
    return SamplingRow(request.params, sequence.token_ids, num_prompt, request.eos_token_ids, index, sequence.history)


def _path_to(draft: Draft, node: int) -> list[int]:
    """The tokens from the first to that of the node."""
    tokens: list[int] = []
    while node >= 0:
        tokens.append(draft.token_ids[node])
        node = draft.parents[node]
    return tokens[::-1]


def _guesses(draft: Draft, node: int) -> list[Guess]:
    """What may follow the node."""
    children = [i for i, parent in enumerate(draft.parents) if parent == node]
    return [Guess(draft.token_ids[i], draft.draft_probs[i] if draft.draft_probs else None) for i in children]


def _origin(draft: Draft | None, node: int, child: int | None) -> TokenOrigin:
    """Of the token after ``node``, which is ``child`` where it was guessed."""
    if not draft:
        return TokenOrigin.STEP
    if child is not None:
        return TokenOrigin.DRAFT
    return TokenOrigin.CORRECTION if node in draft.parents else TokenOrigin.BONUS


def _counts(params: SamplingParams) -> bool:
    """Whether a sequence of these settings is asked in every step which tokens it has."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
