"""``evaluate`` between two checkpoints: float, quantised and GGUF, against transformers with the weights that they mean."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.compressed_checkpoints import write_compressed
from tests.gguf_files import write_gguf
from tests.quantized_checkpoints import write_dequantized, write_gptq
from tests.tiny_models import word_tokenizer
from transformers import AutoModelForCausalLM

from hasten.core.errors import InvalidOption
from hasten.entrypoints.evaluation import Evaluation, evaluate

EXACT = {"dtype": "float32", "backend": "torch"}
IDS = [random.Random(4).choices(range(3, 101), k=60), random.Random(5).choices(range(3, 101), k=41)]
WINDOW = 20


@pytest.fixture(scope="module")
def source(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama-gqa")


@pytest.fixture(scope="module")
def token_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ids") / "ids.txt"
    file.write_text("\n".join(" ".join(map(str, ids)) for ids in IDS))
    return file


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory, source: Path) -> tuple[Path, Path]:
    """Return a GPTQ checkpoint of ``source``, and its weights in float32."""
    folder = tmp_path_factory.mktemp("gptq")
    weights = write_gptq(folder / "int4", source)
    write_dequantized(folder / "float32", source, weights)
    return folder / "int4", folder / "float32"


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double()


def check(found: Evaluation, reference: Path, candidate: Path) -> None:
    """Check KL divergence and perplexities against transformers."""
    kl, nll = [], {"reference": 0.0, "candidate": 0.0}
    for ids in IDS:
        for start in range(0, len(ids) - 1, WINDOW):
            chunk = ids[start : start + WINDOW + 1]
            sides = {"reference": reference, "candidate": candidate}
            logprobs = {side: torch.log_softmax(logits(folder, chunk[:-1]), -1) for side, folder in sides.items()}
            p, q = logprobs["reference"], logprobs["candidate"]
            kl += (p.exp() * (p - q)).sum(-1).tolist()
            for side, values in logprobs.items():
                nll[side] -= sum(float(values[i, token]) for i, token in enumerate(chunk[1:]))
    quality = found.quality
    assert quality.num_tokens == len(kl) == 99
    assert quality.kl_mean == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-7)
    assert quality.kl_max == pytest.approx(max(kl), rel=1e-3, abs=1e-7)
    assert quality.reference_perplexity == pytest.approx(math.exp(nll["reference"] / len(kl)), rel=1e-4)
    assert quality.candidate_perplexity == pytest.approx(math.exp(nll["candidate"] / len(kl)), rel=1e-4)


def stored_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


def test_a_quantised_model_against_its_source(source: Path, gptq: tuple[Path, Path], token_ids: Path) -> None:
    quantised, meant = gptq
    found = evaluate(str(quantised), EXACT, against=str(source), token_ids=token_ids, window=WINDOW)
    assert found.quality.kl_mean > 1e-3
    assert found.quality.kl_upper_bound is not None and found.quality.kl_upper_bound > found.quality.kl_mean
    check(found, source, meant)
    # Files of tensors in order of groups hold g_idx, which is no part of a weight.
    sizes = [found.candidate["file_bytes"], found.reference["file_bytes"]]
    assert sizes[1] == stored_bytes(source)
    g_idx = sum(tensor.nbytes for name, tensor in load_file(quantised / "model.safetensors").items() if name.endswith("g_idx"))
    assert stored_bytes(quantised) - g_idx <= sizes[0] <= stored_bytes(quantised)
    assert found.as_dict()["size_ratio"] == found.size_ratio == sizes[0] / sizes[1] < 0.5
    num_weights = sum(tensor.numel() for tensor in load_file(source / "model.safetensors").values())
    assert found.candidate["bits_per_weight"] == pytest.approx(8 * sizes[0] / num_weights, abs=1e-3)


def test_a_quantised_reference_is_dequantised(source: Path, gptq: tuple[Path, Path], token_ids: Path) -> None:
    quantised, meant = gptq
    check(evaluate(str(source), EXACT, against=str(quantised), token_ids=token_ids, window=WINDOW), meant, source)
    equal = evaluate(str(meant), EXACT, against=str(quantised), token_ids=token_ids, window=WINDOW)
    assert equal.quality.kl_max < 1e-9 and equal.quality.top1_agreement == 1.0


def test_a_reference_quantises_no_activations(tmp_path: Path, source: Path, token_ids: Path) -> None:
    """The scheme of this checkpoint wants int8 activations, which would cost more than 1e-6."""
    weights = write_compressed(tmp_path / "w8a8", source, "w8a8")
    write_dequantized(tmp_path / "float32", source, weights)
    found = evaluate(str(tmp_path / "float32"), EXACT, against=str(tmp_path / "w8a8"), token_ids=token_ids, window=WINDOW)
    assert found.reference["schemes"] and found.quality.kl_max < 1e-9


def test_a_gguf_file_against_a_folder(tmp_path: Path, source: Path, token_ids: Path) -> None:
    weights = write_gguf(tmp_path / "model.gguf", source, "Q8_0", edit=lambda writer: writer.add_tokenizer_model("no_vocab"))
    write_dequantized(tmp_path / "float32", source, weights)
    found = evaluate(str(tmp_path / "model.gguf"), EXACT, against=str(source), token_ids=token_ids, window=WINDOW)
    assert found.quality.kl_mean > 1e-6
    check(found, source, tmp_path / "float32")
    check(
        evaluate(str(source), EXACT, against=str(tmp_path / "model.gguf"), token_ids=token_ids, window=WINDOW),
        tmp_path / "float32",
        source,
    )


def test_equal_checkpoints_differ_by_nothing(source: Path, token_ids: Path) -> None:
    found = evaluate(str(source), EXACT, against=str(source), token_ids=token_ids, window=WINDOW)
    assert (found.quality.kl_max, found.quality.kl_interval, found.quality.perplexity_ratio) == (0.0, (0.0, 0.0), 1.0)
    assert found.size_ratio == 1.0


def test_other_vocabularies_are_refused_before_a_model_loads(
    source: Path, tiny: Callable[[str], Path], token_ids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.entrypoints.evaluation.LLM", None)
    with pytest.raises(InvalidOption, match="different vocabularies: got 101 and 103 tokens"):
        evaluate(str(source), {}, against=str(tiny("gpt2")), token_ids=token_ids)


def test_the_side_without_a_tokenizer_is_named(tmp_path: Path, source: Path) -> None:
    shutil.copytree(source, tmp_path / "words")
    word_tokenizer(101).save_pretrained(tmp_path / "words")
    text = tmp_path / "text.txt"
    text.write_text("w10 w11 w12 w13")
    for sides in ((source, tmp_path / "words"), (tmp_path / "words", source)):
        with pytest.raises(InvalidOption, match=f"{source} has no tokenizer"):
            evaluate(str(sides[0]), EXACT, against=str(sides[1]), text=text)
