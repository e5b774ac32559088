"""The KL of assignments against transformers with the same weights replaced."""

from pathlib import Path

import pytest
import torch
from tests.mixed_models import RoundedLayers, rounded, small_six_layers
from torch import Tensor
from transformers import AutoModelForCausalLM

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.mixed.kl_evaluator import KlEvaluator, split_texts
from hasten.core.errors import InvalidOption
from hasten.models.layer_stream import LayerStream
from hasten.quality.window import TokenText, Window

LENGTHS = (24, 24, 7, 24, 1, 15)


def random_windows(lengths: tuple[int, ...], seed: int = 0) -> list[Window]:
    draw = torch.Generator().manual_seed(seed)
    return [Window(tuple(torch.randint(3, 101, (length + 1,), generator=draw).tolist()), None) for length in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_six_layers(tmp_path_factory.mktemp("six"), 0)


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> KlEvaluator:
    stream = LayerStream.open(Checkpoint.open(folder))
    return KlEvaluator(stream, random_windows(LENGTHS), RoundedLayers(stream))


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
    assert estimate.num_windows == len(LENGTHS)
    assert float(torch.cat(kls).mean()) > 1e-6


def test_the_original_has_no_kl(evaluator: KlEvaluator) -> None:
    estimate = evaluator.evaluate((16,) * 6)
    assert (estimate.mean, estimate.upper) == (0, 0)


def test_only_layers_from_the_first_quantised_one_run(folder: Path) -> None:
    stream = LayerStream.open(Checkpoint.open(folder))
    layers, asked = RoundedLayers(stream), []
    evaluator = KlEvaluator(stream, random_windows(LENGTHS), lambda index, bits: asked.append((index, bits)) or layers(index, bits))
    evaluator.evaluate((16, 16, 16, 4, 16, 8))
    assert asked == [(3, 4), (5, 8)]


def test_too_few_windows_are_refused(folder: Path) -> None:
    stream = LayerStream.open(Checkpoint.open(folder))
    with pytest.raises(InvalidOption, match=r"too short.*got 3 windows"):
        KlEvaluator(stream, random_windows((9, 9, 9)), RoundedLayers(stream))


def test_halves_share_no_text() -> None:
    texts = [TokenText(tuple(range(1000 * number, 1000 * number + 100))) for number in range(6)]
    halves = split_texts(texts, 16, 400)
    assert [sum(window.num_tokens for window in half) for half in halves] == [200, 200]
    first, second = ({window.token_ids[0] // 1000 for window in half} for half in halves)
    assert first == {0, 2, 4}
    assert second == {1, 3, 5}


def test_halves_of_one_text_are_its_first_and_its_second_half() -> None:
    first, second = split_texts([TokenText(tuple(range(129)))], 16, 4096)
    assert [window.token_ids[0] for window in (*first, *second)] == list(range(0, 128, 16))
    assert len(first) == len(second) == 4
