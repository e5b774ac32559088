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
def periodic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "periodic.txt"
    file.write_text("\n".join([" ".join(WORDS)] * 900), encoding="utf-8")
    return file
