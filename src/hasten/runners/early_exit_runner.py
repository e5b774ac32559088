"""``EarlyExitRunner``: a step in stages, where tokens may leave between them.

A step with rows that have exits is run from one depth at which something may leave to the next. Whoever has left gives keys and
values to the layers that it does not reach (CALM, Schuster et al., 2022), before those who go on attend there::

    layers   0          2          4          L
    a        ───────────● leaves   ····keys···       read after 2 layers
    b        ─────────────────────────────────●      read after all
    c        ──────────────────────●                 of fixed depth: nothing of its sequence goes deeper, so nothing is filled

Shape suffixes: T tokens · R rows whose logits are wanted · E hidden size · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from hasten.core.early_exit import ExitCriterion
from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.early_exit import CONFIDENCE_MEASURES
from hasten.early_exit.base import ConfidenceMeasure, Reading
from hasten.layers.exits import Exits
from hasten.runners.layerwise import LayerwiseRunner
from hasten.runners.single_thread import single_thread


@dataclass(slots=True, eq=False)
class _Part:
    """Consecutive tokens of a row that leave together."""

    row: RowPlan  # they alone
    limit: int | None  # where they leave at the latest; None: after the last layer
    fill: bool
    test: ExitCriterion | None = None  # whether they leave earlier, asked of the last of them
    exit_layer: int = 0  # where they left
    # After that: of all of them if the layers that follow are filled, else of those whose logits are wanted.
    state_TE: Tensor | None = None
    logits_RV: Tensor | None = None  # if whoever asked for the test has computed them

    @property
    def num_tokens(self) -> int:
        return len(self.row.token_ids)

    @property
    def wanted_RE(self) -> Tensor:
        assert self.state_TE is not None
        return self.state_TE[len(self.state_TE) - self.row.num_logits :]


class EarlyExitRunner:
    """A ``Runner``. ``exits``: what was trained; None: tokens leave at given depths alone, and are read as if they had not.

    ``token_layers`` [V]: how many layers compute a token, by its id, for the rule "token_table".
    """

    def __init__(
        self, runner: LayerwiseRunner, exits: Exits | None = None, token_layers: Sequence[int] = (), *, own_threads: bool = False
    ) -> None:
        """``own_threads``: stages run on threads that are not PyTorch's, which sleep meanwhile (see ``hasten.runners.single_thread``)."""
        self._runner, self._exits, self._token_layers, self._own_threads = runner, exits, token_layers, own_threads
        self._layers = () if exits is None else exits.spec.layers

    def run(self, plan: StepPlan) -> RunnerOutput:
        asked = [row.exits for row in plan.rows if row.exits is not None]
        if any(exits.exit_layers or exits.test for exits in asked):
            with single_thread() if self._own_threads else nullcontext():
                return self._run(plan)
        output = self._runner.run(plan)
        return dataclasses.replace(output, exit_layers=self._whole(plan), num_layers=self._runner.num_layers) if asked else output

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)

    @torch.inference_mode()
    def _run(self, plan: StepPlan) -> RunnerOutput:
        runner = self._runner
        runner.copy(plan.copies)
        parts = [part for row in plan.rows for part in self._parts(row)]
        going, left = parts, list[_Part]()
        hidden_TE: Tensor | None = None
        before: dict[_Part, Tensor] = {}  # the state of its last token at the stop before
        aux_hidden_states: dict[int, Tensor] = {}
        first = 0
        for last in self._stops(parts):
            filling = [part for part in left if part.fill]
            if filling:
                runner.fill([part.row for part in filling], torch.cat([_state(part) for part in filling]), first, last)
            if going:
                hidden_TE = runner.layers([part.row for part in going], hidden_TE, first, last)
                if last in self._layers and any(part.test for part in going):
                    hidden_TE = hidden_TE.clone()  # a test may project states, and that takes the runner's memory
                states = dict(zip(going, torch.split(hidden_TE, [part.num_tokens for part in going]), strict=True))
                leaving = self._leaving(states, before, last)
                for part in leaving:
                    _leave(part, states[part], last)
                if last - 1 in runner.aux_layer_indices:
                    aux_hidden_states[last - 1] = _aux_hidden_state(parts, states)
                if leaving:
                    left += leaving
                    going = [part for part in going if not part.exit_layer]
                    hidden_TE = torch.cat([states[part] for part in going]) if going else None
                before = {part: states[part][-1:].clone() for part in going if part.test is not None}
            first = last
        depths = [part.exit_layer for part in parts for _ in range(part.row.num_logits)]
        return RunnerOutput(self._logits(parts), aux_hidden_states, _depths(plan, depths), runner.num_layers)

    def _parts(self, row: RowPlan) -> Iterator[_Part]:
        """Runs of tokens with the same known depth; the last token's own, if it may leave before."""
        exits = row.exits
        if exits is None or not (exits.exit_layers or exits.test):
            yield _Part(row, None, fill=False)
            return
        depths = list(exits.exit_layers or (None,) * len(row.token_ids))
        test = exits.test
        if test is not None and test.measure == "token_table":
            depths[-1], test = self._token_layers[row.token_ids[-1]], None
        alone = len(depths) - 1 if test is not None and not test.whole else len(depths)
        runs = [(depth, len(list(run))) for depth, run in groupby(depths[:alone])]
        runs += [(None, 1)] if alone < len(depths) else []
        begin = 0
        for i, (depth, count) in enumerate(runs):
            is_last = i == len(runs) - 1
            assert is_last or row.num_logits <= len(depths) - begin - count, "logits are wanted of tokens of one depth"
            part = dataclasses.replace(
                row,
                start=row.start + begin,
                token_ids=row.token_ids[begin : begin + count],
                num_logits=row.num_logits if is_last else 0,
                exits=None,
            )
            limit = None if depth == self._runner.num_layers else depth
            yield _Part(part, limit, exits.fill, test if is_last else None)
            begin += count

    def _stops(self, parts: Sequence[_Part]) -> list[int]:
        """The depths at which something may happen."""
        stops = {self._runner.num_layers, *(part.limit for part in parts if part.limit is not None)}
        stops |= {layer + 1 for layer in self._runner.aux_layer_indices}
        tests = {part.test.measure for part in parts if part.test is not None}
        if tests:
            stops |= set(self._layers)
        if any(CONFIDENCE_MEASURES[measure].looks_back for measure in tests):
            stops |= {layer - 1 for layer in self._layers if layer > 1}
        return sorted(stops)

    def _leaving(self, states: dict[_Part, Tensor], before: dict[_Part, Tensor], layer: int) -> list[_Part]:
        if layer == self._runner.num_layers:
            return list(states)
        leaving = [part for part in states if part.limit == layer]
        if layer in self._layers:
            tested = [part for part in states if part.test is not None]
            for name in sorted({part.test.measure for part in tested if part.test is not None}):
                asked = [part for part in tested if part.test is not None and part.test.measure == name]
                leaving += self._sure(CONFIDENCE_MEASURES[name], asked, states, before, layer)
        return leaving

    def _sure(
        self, measure: ConfidenceMeasure, parts: list[_Part], states: dict[_Part, Tensor], before: dict[_Part, Tensor], layer: int
    ) -> list[_Part]:
        """Those whose last token's state is sure enough."""
        assert self._exits is not None
        if measure.looks_back:
            parts = [part for part in parts if part in before]  # after the first layer there is nothing to look back at
            if not parts:
                return []
        hidden_RE = torch.cat([states[part][-1:] for part in parts])
        before_RE = torch.cat([before[part] for part in parts]) if measure.looks_back else None
        reading = Reading(hidden_RE, before_RE, self._exits.at(layer), self._runner.head)
        sure = []
        for i, (part, certainty) in enumerate(zip(parts, measure(reading).tolist(), strict=True)):
            assert part.test is not None
            if certainty > part.test.threshold:
                sure.append(part)
                part.logits_RV = reading.computed(i)
        return sure

    def _logits(self, parts: Sequence[_Part]) -> Tensor:
        """[R, V] in the order of the plan. The vocabulary is read once for all whose logits nobody has computed yet."""
        wanted = [part for part in parts if part.row.num_logits]
        if not wanted:
            return torch.empty(0, 0)
        open_parts = [part for part in wanted if part.logits_RV is None]
        if open_parts:
            # A projection may lend its memory out, but never twice at a time.
            logits_RV = self._runner.head(torch.cat([self._read(part) for part in open_parts]))
            if len(open_parts) == len(wanted):
                return logits_RV
            for part, own_RV in zip(open_parts, torch.split(logits_RV, [part.row.num_logits for part in open_parts]), strict=True):
                part.logits_RV = own_RV
        return torch.cat([part.logits_RV for part in wanted if part.logits_RV is not None])

    def _read(self, part: _Part) -> Tensor:
        """The states that the vocabulary projection reads, in the place of those after the last layer."""
        if self._exits is None or part.exit_layer not in self._layers:
            return part.wanted_RE
        return self._exits.at(part.exit_layer).tuned_lens(part.wanted_RE)

    def _whole(self, plan: StepPlan) -> dict[int, int]:
        """Every row with exits went through all layers."""
        return _depths(plan, [self._runner.num_layers] * len(plan.sampled_ids))


def _leave(part: _Part, state_TE: Tensor, depth: int) -> None:
    """The state is the runner's memory, which the next stage overwrites."""
    part.exit_layer = depth
    part.state_TE = (state_TE if part.fill else state_TE[part.num_tokens - part.row.num_logits :]).clone()


def _state(part: _Part) -> Tensor:
    assert part.state_TE is not None
    return part.state_TE


def _aux_hidden_state(parts: Sequence[_Part], states: dict[_Part, Tensor]) -> Tensor:
    """The states of all tokens of the step; of those that have left, zeros: nobody drafts for them. [T, E], float32"""
    width = next(iter(states.values())).shape[1]
    return torch.cat([states[part].float() if part in states else torch.zeros(part.num_tokens, width) for part in parts])


def _depths(plan: StepPlan, depths: Sequence[int]) -> dict[int, int]:
    """Of the rows of the logits, those whose rows have exits."""
    asked = [row.exits is not None for row in plan.rows for _ in range(row.num_logits)]
    return {i: depth for i, (depth, exits) in enumerate(zip(depths, asked, strict=True)) if exits}
