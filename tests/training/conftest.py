"""A tiny model with a word tokenizer, and a periodic text whose next word is always predictable."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

PERIOD = 7
WORDS = [f"w{10 + position}" for position in range(PERIOD)]


def stop_after(calls: int) -> Callable[[], bool]:
    """Return a ``should_stop`` that is False for this many calls."""
    remaining = iter([False] * calls)
    return lambda: next(remaining, True)


@pytest.fixture(scope="session")
def model(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fluent_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, trained to continue the periodic text."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("fluent") / "model"
    shutil.copytree(model, folder)
    fluent = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([[10 + (phase + position) % PERIOD for position in range(128)] for phase in range(PERIOD)])
    optimizer = torch.optim.AdamW(fluent.parameters(), lr=3e-3)
    for _ in range(40):
        fluent(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    fluent.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def periodic_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "periodic.txt"
    file.write_text("\n".join([" ".join(WORDS)] * 900), encoding="utf-8")
    return file
