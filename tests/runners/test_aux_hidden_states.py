"""The auxiliary hidden states of a runner equal those of transformers, layer by layer and row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.paged_runner import PagedRunner
from tests.tiny_models import tiny_reference
from torch import Tensor
from transformers import PreTrainedModel

from hasten.core.engine_options import EngineOptions
from hasten.core.plan import StepPlan
from hasten.models.load import load_decoder
from hasten.runners.backends.choose import choose_backend

PROMPTS = [[3, 77, 12, 50, 50, 8, 96, 1, 1, 64, 23], [5, 9, 2, 31, 7]]
LAYERS = 3


def make_runner(folder: Path, backend_name: str, aux_layer_indices: tuple[int, ...]) -> PagedRunner:
    backend = choose_backend(EngineOptions(backend=backend_name, dtype="float32", threads=1))
    model = load_decoder(folder, dtype="float32", ops=backend.ops, formats=backend.formats)
    return PagedRunner(backend, model, 4, aux_layer_indices)


def hidden_states(reference: PreTrainedModel, prompt: list[int]) -> tuple[Tensor, ...]:
    """Return the hidden states [T, E] before the first layer and after each; the last one is normed."""
    with torch.inference_mode():
        states = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states)


def final_norm(reference: PreTrainedModel) -> torch.nn.Module:
    norm: torch.nn.Module = reference.transformer.ln_f if hasattr(reference, "transformer") else reference.model.norm
    return norm


def close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
def test_hidden_states_equal_transformers(name: str, backend: str, tiny: Callable[[str], Path]) -> None:
    """One prompt in two chunks, beside another prompt. The states of any other layer differ."""
    reference = tiny_reference(name)
    paged = make_runner(tiny(name), backend, tuple(range(LAYERS)))
    first, second = PROMPTS
    states = [hidden_states(reference, prompt) for prompt in PROMPTS]
    plans = [[paged.row(0, 0, first[:4], 0)], [paged.row(1, 0, second, 1), paged.row(0, 4, first[4:], 1)]]
    spans = [[(0, 0, 4)], [(1, 0, len(second)), (0, 4, len(first))]]  # (prompt, begin, end) of each row
    for rows, parts in zip(plans, spans, strict=True):
        found = paged.runner.run(StepPlan(tuple(rows))).aux_hidden_states
        assert set(found) == set(range(LAYERS)) and all(state.dtype == torch.float32 for state in found.values())

        def expected(index: int, parts: list[tuple[int, int, int]] = parts) -> Tensor:
            return torch.cat([states[prompt][index][begin:end] for prompt, begin, end in parts])

        for layer in range(LAYERS - 1):
            assert close(found[layer], expected(layer + 1))
            assert not close(found[layer], expected(layer))
        with torch.inference_mode():
            assert close(final_norm(reference)(found[LAYERS - 1]), expected(LAYERS))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_only_requested_layers_are_returned(backend: str, tiny: Callable[[str], Path]) -> None:
    logits = []
    for layers in ((), (1,)):
        paged = make_runner(tiny("llama-gqa"), backend, layers)
        output = paged.runner.run(StepPlan((paged.row(0, 0, PROMPTS[0], 2),)))
        assert tuple(output.aux_hidden_states) == layers
        logits.append(output.logits)
    assert torch.equal(*logits)
