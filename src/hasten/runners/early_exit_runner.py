"""``EarlyExitRunner``: runs a step in ranges of layers, so that tokens can exit between them.

The ranges end at every layer where a token may exit. Exited tokens get keys and values in the layers that they skip, before the
other tokens attend there (CALM, Schuster et al., 2022, arXiv 2207.07061)::

    layers   0          2          4          L
    a        ───────────● exits    ····KV·····       logits from the hidden state after 2 layers
    b        ─────────────────────────────────●      logits after all layers
    c        ──────────────────────●                 fixed exit layer: no token of its sequence goes further, so no KV is filled

Shape suffixes: T tokens · R rows of logits · E hidden size · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import compress, groupby

import torch
from torch import Tensor

from hasten.core.early_exit import ExitPlan
from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan, StepView
from hasten.early_exit.confidence import CONFIDENCE_MEASURES, ExitInput
from hasten.layers.early_exit import ExitHeads
from hasten.ops.torch.inference import inference
from hasten.runners.base import LayerwiseRunner
from hasten.runners.single_thread import single_thread


@dataclass(slots=True, eq=False)
class _TokenSpan:
    """Consecutive tokens of a row that exit together."""

    row: RowPlan  # of these tokens only
    exit_layer: int  # layers that compute the tokens; a confidence measure may lower it
    fill_kv: bool
    measure: str | None = None  # tests the last token
    threshold: float = 0.0
    hidden_TE: Tensor = field(init=False)  # after the layers run so far; of the tokens that ``exit`` keeps
    previous_hidden_1E: Tensor | None = None  # of the last token, one range of layers earlier
    logits_RV: Tensor | None = None  # set if the confidence measure computed them

    @property
    def logits_hidden_RE(self) -> Tensor:
        return self.hidden_TE[len(self.hidden_TE) - self.row.num_logits :]

    def exit(self) -> None:
        """Keep the hidden states that are read later. The next range of layers overwrites the runner's memory."""
        self.hidden_TE = (self.hidden_TE if self.fill_kv else self.logits_hidden_RE).clone()


class EarlyExitRunner:
    """A ``Runner`` that carries out exit plans.

    ``exits`` are the trained exit heads. Without them, exit layers must be known in advance, and the model's own head reads the
    hidden states there. ``token_layers`` [V] is the table of rule "token_table": token id -> exit layer.
    """

    def __init__(
        self,
        runner: LayerwiseRunner,
        exits: ExitHeads | None = None,
        token_layers: Sequence[int] = (),
        *,
        run_all_layers: Callable[[StepPlan], RunnerOutput] | None = None,
        has_own_thread_pool: bool = False,
    ) -> None:
        """``run_all_layers`` runs the steps in which no token exits early; by default ``runner.run``.

        ``has_own_thread_pool``: ``runner`` computes on threads that are not PyTorch's.
        """
        self._runner, self._exits, self._token_layers = runner, exits, token_layers
        self._run_all_layers = run_all_layers or runner.run
        self._has_own_thread_pool = has_own_thread_pool
        self._exit_layers = () if exits is None else exits.spec.layers

    def run(self, plan: StepPlan) -> RunnerOutput:
        exit_plans = [row.exit_plan for row in plan.rows if row.exit_plan is not None]
        if any(exit_plan.exit_layers or exit_plan.criterion for exit_plan in exit_plans):
            with single_thread() if self._has_own_thread_pool else nullcontext():
                output, exit_layers = self._run_layerwise(plan)
        else:
            output, exit_layers = self._run_all_layers(plan), [self._runner.num_layers] * len(plan.sampled_sequence_ids)
        if not exit_plans:
            return output
        has_exit_plan = [row.exit_plan is not None for row in plan.rows for _ in range(row.num_logits)]
        reported = dict(compress(enumerate(exit_layers), has_exit_plan))
        return dataclasses.replace(output, exit_layers=reported, num_layers=self._runner.num_layers)

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)

    @inference()
    def _run_layerwise(self, plan: StepPlan) -> tuple[RunnerOutput, list[int]]:
        """Return the output, and the exit layer of each row of its logits."""
        runner = self._runner
        runner.copy(plan.copies)
        spans = [span for row in plan.rows for span in self._spans(row)]
        active, skipping = spans, list[_TokenSpan]()
        hidden_TE: Tensor | None = None
        aux_hidden_states: dict[int, StepView] = {}
        first = 0
        for last in self._range_ends(spans):
            if skipping:
                runner.fill_kv([span.row for span in skipping], torch.cat([span.hidden_TE for span in skipping]), first, last)
            if active:
                hidden_TE = runner.layers([span.row for span in active], hidden_TE, first, last)
                tested = [span for span in active if span.measure is not None] if last in self._exit_layers else []
                if tested:
                    hidden_TE = hidden_TE.clone()  # a confidence measure may call ``head``, which overwrites the runner's memory
                for span, span_TE in zip(active, torch.split(hidden_TE, [len(s.row.token_ids) for s in active]), strict=True):
                    span.hidden_TE = span_TE
                if last - 1 in runner.aux_layer_indices:
                    aux_hidden_states[last - 1] = _aux_hidden_state(spans, last, hidden_TE.shape[1])
                self._apply_criteria(tested, last)
                exited = [span for span in active if span.exit_layer == last]
                if exited:
                    for span in exited:
                        span.exit()
                    skipping += [span for span in exited if span.fill_kv]
                    active = [span for span in active if span.exit_layer > last]
                    hidden_TE = torch.cat([span.hidden_TE for span in active]) if active else None
                for span in active:
                    if span.measure is not None:
                        span.previous_hidden_1E = span.hidden_TE[-1:].clone()
            first = last
        exit_layers = [span.exit_layer for span in spans for _ in range(span.row.num_logits)]
        return RunnerOutput(self._logits(spans), aux_hidden_states), exit_layers

    def _spans(self, row: RowPlan) -> Iterator[_TokenSpan]:
        """Split a row into tokens of equal exit layer. A last token that is tested alone is a span of its own."""
        exit_plan, num_tokens, num_layers = row.exit_plan or ExitPlan(), len(row.token_ids), self._runner.num_layers
        # (exit layer, whether the token is tested alone) per token
        keys = [(layer or num_layers, False) for layer in exit_plan.exit_layers or (None,) * num_tokens]
        criterion = exit_plan.criterion
        if criterion is not None and criterion.measure == "token_table":
            keys[-1], criterion = (self._token_layers[row.token_ids[-1]], False), None
        elif criterion is not None and not criterion.per_request:
            keys[-1] = (num_layers, True)
        begin = 0
        for (exit_layer, _), group in groupby(keys):
            end = begin + len(list(group))
            is_last = end == num_tokens
            assert is_last or row.num_logits <= num_tokens - end, "all tokens with logits have one exit layer"
            part = dataclasses.replace(
                row, start=row.start + begin, token_ids=row.token_ids[begin:end], num_logits=row.num_logits if is_last else 0
            )
            span = _TokenSpan(part, exit_layer, exit_plan.fill_kv and exit_layer < num_layers)
            if is_last and criterion is not None:
                span.measure, span.threshold, span.fill_kv = criterion.measure, criterion.threshold, exit_plan.fill_kv
            yield span
            begin = end

    def _range_ends(self, spans: Sequence[_TokenSpan]) -> list[int]:
        """Return the layers, rising, after which a hidden state is read or a token may exit."""
        ends = {self._runner.num_layers, *(span.exit_layer for span in spans)}
        ends |= {layer + 1 for layer in self._runner.aux_layer_indices}
        measures = {span.measure for span in spans if span.measure is not None}
        if measures:
            ends |= set(self._exit_layers)
        if any(CONFIDENCE_MEASURES[measure].needs_previous_hidden for measure in measures):
            ends |= {layer - 1 for layer in self._exit_layers if layer > 1}
        return sorted(ends)

    def _apply_criteria(self, spans: Sequence[_TokenSpan], layer: int) -> None:
        """Set ``exit_layer`` of the spans whose last token is confident enough after ``layer`` layers."""
        for name in sorted({span.measure for span in spans if span.measure is not None}):
            measure = CONFIDENCE_MEASURES[name]
            tested = [span for span in spans if span.measure == name]
            previous_RE: Tensor | None = None
            if measure.needs_previous_hidden:
                previous = [span.previous_hidden_1E for span in tested if span.previous_hidden_1E is not None]
                if not previous:  # the first layer has no layer before it
                    continue
                previous_RE = torch.cat(previous)
            assert self._exits is not None
            hidden_RE = torch.cat([span.hidden_TE[-1:] for span in tested])
            exit_input = ExitInput(hidden_RE, previous_RE, self._exits.at(layer), self._runner.head)
            for i, (span, confidence) in enumerate(zip(tested, measure.compute(exit_input).tolist(), strict=True)):
                if confidence > span.threshold:
                    span.exit_layer, span.logits_RV = layer, exit_input.computed_logits(i)

    def _logits(self, spans: Sequence[_TokenSpan]) -> Tensor:
        """Return the logits in the order of the plan [R, V]; one ``head`` call computes the missing ones."""
        sampled = [span for span in spans if span.row.num_logits]
        missing = [span for span in sampled if span.logits_RV is None]
        if missing:
            logits_RV = self._runner.head(torch.cat([self._head_input(span) for span in missing]))
            if len(missing) == len(sampled):
                return logits_RV
            for span, span_RV in zip(missing, torch.split(logits_RV, [s.row.num_logits for s in missing]), strict=True):
                span.logits_RV = span_RV
        if not sampled:
            return torch.empty(0, 0, dtype=torch.float32, device="cpu")
        return torch.cat([span.logits_RV for span in sampled if span.logits_RV is not None])

    def _head_input(self, span: _TokenSpan) -> Tensor:
        """Return the hidden states [R, E] that stand in for those after the last layer."""
        if self._exits is None or span.exit_layer not in self._exit_layers:
            return span.logits_hidden_RE
        return self._exits.at(span.exit_layer).tuned_lens(span.logits_hidden_RE)


def _aux_hidden_state(spans: Sequence[_TokenSpan], layer: int, hidden_size: int) -> StepView:
    """Return the float32 hidden states of all tokens of the step [T, E]; zeros for exited tokens."""
    # Sequences with an exit rule take no drafts, so no drafter reads the zeros.
    states = [
        span.hidden_TE.float()
        if span.exit_layer >= layer
        else torch.zeros(len(span.row.token_ids), hidden_size, dtype=torch.float32, device="cpu")
        for span in spans
    ]
    return StepView(torch.cat(states))
