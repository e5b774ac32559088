"""A NaN among the weights makes the logits of every request of a step NaN, so that each of them is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.paged_runner import PagedRunner

from hasten.core.engine_options import EngineOptions
from hasten.models.load import load_decoder
from hasten.runners.backends.choose import choose_backend


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("part", ["attention.qkv", "attention.out", "mlp.up", "mlp.down"])
def test_every_request_of_the_step_shows_a_weight_that_is_not_finite(
    part: str, row: int, number: float, tiny: Callable[[str], Path]
) -> None:
    backend = choose_backend(EngineOptions(backend="torch", dtype="float32"))
    model = load_decoder(tiny("llama-gqa"), ops=backend.ops, formats=backend.formats)
    with torch.no_grad():  # after loading, which refuses such a weight
        model.decoder.get_parameter(f"layers.1.{part}.format.weight")[row] = number
    paged = PagedRunner(backend, model, 4)
    logits_RV = paged.run(paged.row(0, 0, [3, 4, 5], 1), paged.row(1, 0, [7], 1), paged.row(2, 0, [8, 9], 1))
    assert logits_RV.isnan().any(dim=1).all()
