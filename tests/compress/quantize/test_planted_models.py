"""Planted models have the function of their source, and channels that round to nearest badly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tests.compress.quantize.planted_models import OUTLIER_FACTOR, SALIENT_FACTOR, write_outliers, write_salient
from tests.compress.quantize.stream_quantization import DEMO
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.models.layer_stream import LayerStream

Tiny = Callable[[str], Path]


def reference_logits(folder: Path, ids_BS: Tensor) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits: Tensor = model.eval()(ids_BS).logits
    return logits.detach()


@pytest.mark.parametrize("name", ["llama-mqa-bias", "qwen3-gqa", "gpt2", "llama-sharded"])
@pytest.mark.parametrize(("write", "factor"), [(write_salient, SALIENT_FACTOR), (write_outliers, OUTLIER_FACTOR)])
def test_the_function_is_that_of_the_source(
    tiny: Tiny, tmp_path: Path, name: str, write: Callable[[Path, Path], Path], factor: float
) -> None:
    planted, source = write(tmp_path / "planted", tiny(name)), tiny(name)
    ids_BS = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    assert torch.equal(reference_logits(planted, ids_BS), reference_logits(source, ids_BS))
    layers = [LayerStream.open(Checkpoint.open(folder)).layer(1) for folder in (planted, source)]
    for norms in ([layer.attention_norm.weight for layer in layers], [layer.mlp_norm.weight for layer in layers]):
        ratios = norms[0] / norms[1]
        assert set(ratios.tolist()) == {1.0, factor}
        assert 1 <= int((ratios == factor).sum()) <= 2


def test_the_demo_keeps_its_dtype_and_its_tokenizer(tmp_path: Path) -> None:
    planted, source = Checkpoint.open(write_salient(tmp_path / "planted", DEMO)), Checkpoint.open(DEMO)
    assert planted.tensors.keys() == source.tensors.keys()
    assert planted.config == source.config
    assert {entry.dtype for entry in planted.tensors.values()} == {"BF16"}
    assert {path.name for path in planted.folder.iterdir()} == {path.name for path in DEMO.iterdir()}
