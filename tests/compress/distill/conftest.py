"""A tiny teacher that is fluent in one text, and texts whose next word is always predictable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

PERIOD = 7
A, B = 10, 40  # first words of the texts
ENGINE = ("--kv-cache-memory", "16MiB")


def periodic_ids(first: int, length: int, phase: int = 0) -> list[int]:
    return [first + (phase + position) % PERIOD for position in range(length)]


def write_text(file: Path, first: int, repeats: int = 400) -> Path:
    line = " ".join(f"w{token}" for token in periodic_ids(first, PERIOD))
    file.write_text("\n".join([line] * repeats), encoding="utf-8")
    return file


def write_jsonl(file: Path, records: Sequence[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def plain_model(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of three layers with a word tokenizer."""
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, trained to continue text A."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(plain_model, folder)
    model = AutoModelForCausalLM.from_pretrained(plain_model, dtype=torch.float32)
    ids = torch.tensor([periodic_ids(A, 64, phase) for phase in range(PERIOD)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts") / "a.txt", A)


@pytest.fixture(scope="session")
def text_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts") / "b.txt", B)
