"""From logits to accepted tokens: sampling, beams, text and stops. It knows no blocks and decides no schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.result import Continuation, FinishReason, StepResult
from hasten.core.sampling_params import SamplingParams
from hasten.decoding.search.base import BeamStep
from hasten.decoding.search.candidates import best_candidates
from hasten.engine.answer import Answer
from hasten.engine.record import Record
from hasten.sampling.history import TokenHistory
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler, usable
from hasten.scheduling.sequence import Sequence

UNUSABLE = "the model's logits for this request are not finite numbers (NaN or infinity)"
NO_TOKEN = "the settings of this request leave no token to choose: its masks, bias and penalties forbid all of them"


@dataclass(slots=True)
class _Accepted:
    """A step's result in the making."""

    continuations: list[Continuation] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    poisoned: list[int] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # request id -> answers with something new


class Acceptor:
    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def accept(
        self, logits_RV: Tensor, sequences: list[Sequence], records: Mapping[str, Record], now: float
    ) -> tuple[StepResult, dict[str, list[Answer]]]:
        """``sequences[r]`` computed row r. Returns what the scheduler must know, and which answers have news.

        Mutates the records. A row without usable numbers ends its own request and no other.
        """
        accepted = _Accepted()
        beams: dict[str, list[int]] = {}
        lines: list[tuple[int, Answer]] = []  # (row, the answer that takes its token)
        for row, sequence in enumerate(sequences):
            record = records[sequence.entry.request.request_id]
            if record.search is not None:
                beams.setdefault(record.request.request_id, []).append(row)
            elif sequence.num_output_tokens == 0:
                lines += [(row, answer) for answer in record.answers]
            else:
                lines.append((row, record.answers[sequence.index]))
        self._sample(logits_RV, sequences, lines, records, accepted, now)
        for request_id, rows in beams.items():
            self._search(logits_RV, [(row, sequences[row]) for row in rows], records[request_id], accepted, now)
        result = StepResult(tuple(accepted.continuations), tuple(accepted.dropped), tuple(accepted.poisoned))
        return result, accepted.answers

    def _sample(
        self,
        logits_RV: Tensor,
        sequences: list[Sequence],
        lines: list[tuple[int, Answer]],
        records: Mapping[str, Record],
        accepted: _Accepted,
        now: float,
    ) -> None:
        if not lines:
            return
        taken = [row for row, _ in lines]
        if taken != list(range(len(logits_RV))):  # beams beside, or one row feeding n answers
            logits_RV = logits_RV[torch.tensor(taken, device=logits_RV.device)]
        tokens = self._sampler.sample(logits_RV, [_view(sequences[row], answer.index) for row, answer in lines])
        for line, ((row, answer), token) in enumerate(zip(lines, tokens, strict=True)):
            sequence = sequences[row]
            record = records[sequence.entry.request.request_id]
            if token is None and all(usable(logits_RV[line : line + 1])):
                self._fail(sequence.entry.sequences, record, accepted, now, NO_TOKEN)
            elif token is None:
                self._fail(sequence.entry.sequences, record, accepted, now, UNUSABLE, poisoned=True)
            elif record.error is None:
                finish = answer.push(token.token_id, token.logprob)
                accepted.continuations.append(Continuation(sequence.id, token.token_id, finish, answer.index))
                accepted.answers.setdefault(record.request.request_id, []).append(answer)

    def _search(self, logits_RV: Tensor, rows: list[tuple[int, Sequence]], record: Record, accepted: _Accepted, now: float) -> None:
        """One step of a beam search: rows in the order of the beams."""
        search = record.search
        assert search is not None
        rows = sorted(rows, key=lambda r: r[1].index)
        logits_BV = logits_RV[torch.tensor([row for row, _ in rows], device=logits_RV.device)]
        if not all(usable(logits_BV)):
            return self._fail([sequence for _, sequence in rows], record, accepted, now, UNUSABLE, poisoned=True)
        views = [_view(sequence, sequence.index) for _, sequence in rows]
        scores = self._sampler.beam_logprobs(logits_BV, views)
        lines = search.lines
        candidates = best_candidates(scores, search.scores, search.candidates_wanted)
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
            accepted.continuations.append(Continuation(parent, beam.token_id, index=index))
        accepted.dropped += [sequence.id for _, sequence in rows if sequence.id not in parents]
        return None

    def _note_logprobs(
        self, logits_BV: Tensor, views: list[SamplingRow], lines: tuple[tuple[int, ...], ...], step: BeamStep, record: Record
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
        record: Record,
        accepted: _Accepted,
        now: float,
        error: str,
        *,
        poisoned: bool = False,
    ) -> None:
        """End a request that cannot go on. ``poisoned``: its numbers are not to be trusted, so nobody may reuse its blocks."""
        if record.error is None:
            record.end(FinishReason.ERROR, now, error)
            ending = accepted.poisoned if poisoned else accepted.dropped
            ending += [sequence.id for sequence in sequences]
            gone = {*accepted.poisoned, *accepted.dropped}
            accepted.continuations = [c for c in accepted.continuations if c.parent not in gone]
            accepted.answers[record.request.request_id] = list(record.answers)


def _view(sequence: Sequence, index: int) -> SamplingRow:
    request = sequence.entry.request
    num_prompt = len(request.prompt_token_ids)
    if sequence.history is None and _counts(request.params):
        sequence.history = TokenHistory(num_prompt)
    return SamplingRow(request.params, sequence.token_ids, num_prompt, request.eos_token_ids, index, sequence.history)


def _counts(params: SamplingParams) -> bool:
    """Whether a sequence of these settings is asked in every step which tokens it has."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
