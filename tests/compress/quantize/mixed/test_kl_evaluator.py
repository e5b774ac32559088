"""The KL of assignments against transformers with the same weights replaced."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mixed_models import RoundedLayers, rounded, small_six_layers
from torch import Tensor
from transformers import AutoModelForCausalLM

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.mixed.kl_evaluator import KlEvaluator
from hasten.core.errors import InvalidOption
from hasten.models.layer_stream import LayerStream
from hasten.quality.window import Window

LENGTHS = (24, 24, 7, 24, 1, 15)
CLUSTERS = (2, 1, 1, 2)  # windows


def random_windows(lengths: tuple[int, ...], seed: int = 0) -> list[Window]:
    draw = torch.Generator().manual_seed(seed)
    return [Window(tuple(torch.randint(3, 101, (length + 1,), generator=draw).tolist()), None) for length in lengths]


def clustered(parts: list[Any]) -> list[list[Any]]:
    starts = (0, *accumulate(CLUSTERS))
    return [parts[start : start + count] for start, count in zip(starts, CLUSTERS, strict=False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_six_layers(tmp_path_factory.mktemp("six"), 0)


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> KlEvaluator:
    stream = LayerStream.open(Checkpoint.open(folder))
    return KlEvaluator(stream, clustered(random_windows(LENGTHS)), RoundedLayers(stream))


def log_probs(model: torch.nn.Module, window: Window) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([window.token_ids[:-1]])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("bits", [(16, 16, 4, 16, 16, 16), (16, 16, 16, 16, 16, 8), (4, 16, 16, 16, 16, 16), (8, 4, 16, 4, 8, 4)])
def test_the_kl_is_that_of_a_model_with_these_weights(folder: Path, evaluator: KlEvaluator, bits: tuple[int, ...]) -> None:
    model, candidate = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    for layer, number in zip(candidate.model.layers, bits, strict=True):
        if number < 16:
            for name, module in layer.named_modules():
                if name.endswith("_proj"):
                    module.weight.data = rounded(module.weight.data, number)
    kls = []
    for window in random_windows(LENGTHS):
        logp, logq = log_probs(model, window), log_probs(candidate, window)
        kls.append((logp.exp() * (logp - logq)).sum(-1))
    estimate = evaluator.evaluate(bits)
    assert estimate.mean == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    assert estimate.num_clusters == len(CLUSTERS)
    assert float(torch.cat(kls).mean()) > 1e-6
    # Cochran, 1977, section 6.4: the error of a ratio of a cluster's KL to its tokens.
    sums = [(sum(float(kl.sum()) for kl in cluster), sum(map(len, cluster))) for cluster in clustered(kls)]
    ratio, count = sum(kl for kl, _ in sums) / sum(LENGTHS), len(CLUSTERS)
    variance = sum((kl - ratio * tokens) ** 2 for kl, tokens in sums) / (count - 1) / count / (sum(LENGTHS) / count) ** 2
    assert estimate.standard_error == pytest.approx(variance**0.5, rel=2e-3)


def test_the_original_has_no_kl(evaluator: KlEvaluator) -> None:
    estimate = evaluator.evaluate((16,) * 6)
    assert (estimate.mean, estimate.upper()) == (0, 0)


def test_only_layers_from_the_first_quantised_one_run(folder: Path) -> None:
    stream = LayerStream.open(Checkpoint.open(folder))
    layers, asked = RoundedLayers(stream), []
    text = clustered(random_windows(LENGTHS))
    evaluator = KlEvaluator(stream, text, lambda index, bits: asked.append((index, bits)) or layers(index, bits))
    evaluator.evaluate((16, 16, 16, 4, 16, 8))
    assert asked == [(3, 4), (5, 8)]


def test_too_few_clusters_are_refused(folder: Path) -> None:
    stream = LayerStream.open(Checkpoint.open(folder))
    with pytest.raises(InvalidOption, match=r"too short.*got 3 parts"):
        KlEvaluator(stream, [random_windows((9, 9)) for _ in range(3)], RoundedLayers(stream))
