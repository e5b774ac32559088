"""A tiny model of words with its engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasten import LLM


@pytest.fixture(scope="session")
def word_folder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny checkpoint whose token i is the word ``wi``."""
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_llm(word_folder: Path) -> Iterator[LLM]:
    settings = {"max_model_len": 64, "kv_cache_memory": "16MiB", "speculative_method": "off"}
    with LLM(str(word_folder), threads=1, dtype="float32", **settings) as loaded:
        yield loaded
