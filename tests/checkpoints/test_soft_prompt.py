"""Soft prompts on disk: a round trip keeps every bit, and each fault of a file is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.checkpoints.formats.soft_prompt import CONFIG, TENSOR, WEIGHTS, TrainedFor, read_soft_prompt, write_soft_prompt
from hasten.core.errors import CheckpointError, ModelNotFound

ROWS = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
TRAINED_FOR = TrainedFor(base_model="base", num_layers=2, num_attention_heads=4)
# As peft 0.21.2 writes it, with every key.
PEFT_CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": "base",
    "inference_mode": True,
    "modules_to_save": None,
    "num_attention_heads": 4,
    "num_layers": 2,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": 3,
    "peft_type": "PROMPT_TUNING",
    "peft_version": "0.21.2",
    "prompt_tuning_init": "RANDOM",
    "prompt_tuning_init_text": None,
    "revision": None,
    "task_type": "CAUSAL_LM",
    "token_dim": 16,
    "tokenizer_kwargs": None,
    "tokenizer_name_or_path": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_soft_prompt(tmp_path, ROWS, TRAINED_FOR)
    return tmp_path


def test_what_is_written_is_read_and_is_the_format_of_peft(folder: Path) -> None:
    stored = read_soft_prompt(folder, 16, 100)
    assert torch.equal(stored.embeddings_NE, ROWS) and stored.base_model == "base"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    written = json.loads((folder / CONFIG).read_text())
    assert written.items() <= PEFT_CONFIG.items()
    assert torch.equal(load_file(folder / WEIGHTS)["prompt_embeddings"], ROWS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prompt_that_peft_wrote_is_read_in_any_float_dtype(folder: Path, dtype: torch.dtype) -> None:
    (folder / CONFIG).write_text(json.dumps(PEFT_CONFIG))
    save_file({TENSOR: ROWS.to(dtype)}, folder / WEIGHTS)
    assert torch.equal(read_soft_prompt(folder, 16, 100).embeddings_NE, ROWS.to(dtype).float())


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(json.dumps({**PEFT_CONFIG, **changes}))


def tensors(**stored: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: save_file(stored, folder / WEIGHTS)


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "lora": (config(peft_type="LORA"), "not a soft prompt .*peft_type='LORA'"),
    "another task": (config(task_type="SEQ_2_SEQ_LM"), "not a soft prompt .*SEQ_2_SEQ_LM"),
    "encoder and decoder": (config(num_transformer_submodules=2), "not a soft prompt"),
    "kind of another type": (config(peft_type=["x"] * 10_000), "not a soft prompt"),
    "no virtual token": (config(num_virtual_tokens=0), "num_virtual_tokens=0.*whole numbers"),
    "count of another type": (config(num_virtual_tokens="3"), "num_virtual_tokens='3'"),
    "true is no count": (config(num_virtual_tokens=True), "num_virtual_tokens=True"),
    "another hidden size": (config(token_dim=32), "another hidden size: got 32; allowed: 16"),
    "too long": (config(num_virtual_tokens=10**15), "leaves no room"),
    "another number of rows": (config(num_virtual_tokens=4), r"got prompt_embeddings \[3, 16\] F32; .*\[4, 16\]"),
    "not an object": (lambda folder: (folder / CONFIG).write_text("[]"), "not a JSON object"),
    "not JSON": (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read as JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no weight file; allowed: adapter_model.safetensors"),
    "a pickle": (only_a_pickle, "only pickle files"),
    "truncated": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]), "the file has"),
    "another tensor": (tensors(other=ROWS), "does not hold the soft prompt"),
    "one tensor too many": (tensors(prompt_embeddings=ROWS, other=ROWS.clone()), "does not hold the soft prompt"),
    "no tensor": (tensors(), "no tensor"),
    "one dimension": (tensors(prompt_embeddings=ROWS.flatten()), r"\[48\]"),
    "integers": (tensors(prompt_embeddings=ROWS.int()), "I32"),
    "NaN": (tensors(prompt_embeddings=ROWS.clone().fill_diagonal_(torch.nan)), "NaN or infinity"),
    "infinite in float32": (tensors(prompt_embeddings=ROWS.double() * 1e300), "NaN or infinity"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence(name: str, folder: Path) -> None:
    damage, message = FAULTS[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_soft_prompt(folder, 16, 100)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such folder"):
        read_soft_prompt(tmp_path / "none", 16, 100)
    with pytest.raises(ModelNotFound, match="so it is not the folder of a soft prompt"):
        read_soft_prompt(tmp_path, 16, 100)
