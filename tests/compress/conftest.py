"""A tiny model with a word tokenizer, and a text for its calibration."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, three layers, 64 and 96 inputs, grouped heads."""
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = random.Random(7).choices([f"w{number}" for number in range(10, 90)], k=4_000)
    file = tmp_path_factory.mktemp("texts") / "calibration.txt"
    file.write_text(" ".join(words), encoding="utf-8")
    return file
