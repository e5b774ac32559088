"""From logits to accepted tokens: rows are sampled and verified, or advance a beam search."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.core.plan import RunnerOutput
from hasten.engine.beam_step import advance_beams
from hasten.engine.request_state import RequestState
from hasten.engine.sampling_rows import NO_NODE, SampledRow
from hasten.engine.step_outcome import StepOutcome
from hasten.engine.verification import sample_and_verify
from hasten.sampling.sampler import Sampler
from hasten.scheduling.sequence import Sequence


def accept(
    sampler: Sampler, output: RunnerOutput, sequences: list[Sequence], states: Mapping[str, RequestState], now: float
) -> StepOutcome:
    """Accept the tokens of one step.

    ``sequences[r]`` computed row r of the logits: its last token, then each node of its draft.
    Mutates the states. A row that is not finite, or that raises, ends its own request and no other.
    """
    outcome = StepOutcome(now, _early_exits(output, sequences))
    beams: dict[str, list[tuple[int, Sequence]]] = {}
    rows: list[SampledRow] = []
    previous: Sequence | None = None
    node = NO_NODE
    for index, sequence in enumerate(sequences):
        node = node + 1 if sequence is previous else NO_NODE
        previous = sequence
        state, exit_layer = states[sequence.request.request_id], output.exit_layers.get(index)
        try:
            if state.search is not None:
                beams.setdefault(state.request.request_id, []).append((index, sequence))
            elif sequence.num_output_tokens == 0:  # the prompt's last token starts all completions
                rows += [SampledRow(index, sequence, completion, NO_NODE, exit_layer) for completion in state.completions]
            else:
                rows.append(SampledRow(index, sequence, state.completions[sequence.index], node, exit_layer))
        except Exception as error:
            outcome.fail_by_exception(state, sequence.scheduled_request.sequences, error)
    if rows:
        sample_and_verify(sampler, output.logits, rows, states, outcome)
    for request_id, own in beams.items():
        try:
            advance_beams(sampler, output.logits, own, states[request_id], outcome)
        except Exception as error:
            outcome.fail_by_exception(states[request_id], own[0][1].scheduled_request.sequences, error)
    return outcome


def _early_exits(output: RunnerOutput, sequences: list[Sequence]) -> dict[int, int]:
    """Return sequence id -> exit layer, for last tokens that exited before they had to."""
    early = {row: layer for row, layer in output.exit_layers.items() if layer != output.num_layers}
    return {sequences[row].id: layer for row, layer in early.items() if sequences[row].exit_layer is None}
