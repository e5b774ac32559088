"""A loaded demo model, a tiny model of words, and items of a small task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hasten import LLM
from hasten.prompts.task import PromptTask, read_prompt_task

MODULES = ("json", "os", "sys", "re", "math", "random", "time", "string", "socket", "struct")

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "max_model_len": 256,
    "kv_cache_memory": "16MiB",
    "speculative_method": "off",
}


@dataclass(frozen=True)
class TextVariant:
    """A variant by ``str.format``."""

    name: str
    text: str

    def render(self, variables: Mapping[str, str]) -> str:
        return self.text.format(**variables)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", **OPTIONS) as loaded:
        yield loaded


@pytest.fixture
def task(tmp_path: Path) -> PromptTask:
    """Return ten items: the name of a module is to follow ``import``."""
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps({"input": name, "output": name}) + "\n" for name in MODULES))
    return read_prompt_task(file)


@pytest.fixture(scope="session")
def word_folder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny checkpoint whose token i is the word ``wi``."""
    from tests.tiny_models import word_tokenizer

    folder = tmp_path_factory.mktemp("words") / "model"
    shutil.copytree(tiny("llama-gqa"), folder)
    word_tokenizer(101).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def word_llm(word_folder: Path) -> Iterator[LLM]:
    settings = {"max_model_len": 64, "kv_cache_memory": "16MiB", "speculative_method": "off"}
    with LLM(str(word_folder), threads=1, dtype="float32", **settings) as loaded:
        yield loaded
