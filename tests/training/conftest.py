"""A tiny model with a tokenizer, and a text that repeats every seven words: whoever reads it right can guess all of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

PERIOD = 7
WORDS = [f"w{10 + place}" for place in range(PERIOD)]


@pytest.fixture(scope="session")
def model(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fluent(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, when it has learned to go on with the text."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("fluent") / "model"
    shutil.copytree(model, folder)
    taught = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[10 + (phase + place) % PERIOD for place in range(128)] for phase in range(PERIOD)])
    optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
    for _ in range(40):
        taught(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    taught.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def periodic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "periodic.txt"
    file.write_text("\n".join([" ".join(WORDS)] * 900), encoding="utf-8")
    return file
