"""Hidden states that a runner hands out beside the logits: those of transformers, layer by layer and row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.step_rows import Steps
from tests.tiny_models import tiny_reference
from torch import Tensor
from transformers import PreTrainedModel

from hasten.core.engine_options import EngineOptions
from hasten.core.plan import StepPlan
from hasten.models.load import load_decoder
from hasten.runners.backends.choose import choose_backend

PROMPTS = [[3, 77, 12, 50, 50, 8, 96, 1, 1, 64, 23], [5, 9, 2, 31, 7]]
LAYERS = 3


def steps(folder: Path, backend: str, aux_layer_indices: tuple[int, ...]) -> Steps:
    chosen = choose_backend(EngineOptions(backend=backend, dtype="float32", threads=1))
    return Steps(chosen, load_decoder(folder, dtype="float32", ops=chosen.ops, formats=chosen.formats), 4, aux_layer_indices)


def states_of(reference: PreTrainedModel, prompt: list[int]) -> tuple[Tensor, ...]:
    """Before the first layer, after each one; the last is behind the final norm. [T, E] each"""
    with torch.inference_mode():
        found = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return tuple(state[0] for state in found)


def final_norm(reference: PreTrainedModel) -> torch.nn.Module:
    norm: torch.nn.Module = reference.transformer.ln_f if hasattr(reference, "transformer") else reference.model.norm
    return norm


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_tapped_layers_equal_transformers(name: str, backend: str, tiny: Callable[[str], Path]) -> None:
    """A prompt in two pieces beside another one; a tap of any other layer would show."""
    reference = tiny_reference(name)
    made = steps(tiny(name), backend, tuple(range(LAYERS)))
    first, second = PROMPTS
    states = [states_of(reference, prompt) for prompt in PROMPTS]
    plans = [[made.row(0, 0, first[:4], 0)], [made.row(1, 0, second, 1), made.row(0, 4, first[4:], 1)]]
    parts = [[(0, 0, 4)], [(1, 0, len(second)), (0, 4, len(first))]]
    for rows, pieces in zip(plans, parts, strict=True):
        taps = made.runner.run(StepPlan(tuple(rows))).aux_hidden_states
        assert set(taps) == set(range(LAYERS)) and all(tap.dtype == torch.float32 for tap in taps.values())

        def wanted(state: int, pieces: list[tuple[int, int, int]] = pieces) -> Tensor:
            return torch.cat([states[prompt][state][begin:end] for prompt, begin, end in pieces])

        for layer in range(LAYERS - 1):
            assert close(taps[layer], wanted(layer + 1))
            assert not close(taps[layer], wanted(layer))
        with torch.inference_mode():
            assert close(final_norm(reference)(taps[LAYERS - 1]), wanted(LAYERS))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_only_what_was_asked_for_is_tapped(backend: str, tiny: Callable[[str], Path]) -> None:
    logits = []
    for taps in ((), (1,)):
        made = steps(tiny("llama-gqa"), backend, taps)
        output = made.runner.run(StepPlan((made.row(0, 0, PROMPTS[0], 2),)))
        assert tuple(output.aux_hidden_states) == taps
        logits.append(output.logits.clone())
    assert torch.equal(*logits)
