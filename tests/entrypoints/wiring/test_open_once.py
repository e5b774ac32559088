"""An engine reads the header of each weights file once: half a million strings of a GGUF file take seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.gguf_files import write_gguf
from tests.text.gguf_vocabularies import add_letters

from hasten import LLM, SamplingParams
from hasten.checkpoints import shards
from hasten.checkpoints.gguf import container
from hasten.core.engine_options import EngineOptions
from hasten.entrypoints.model_report import report_model

SMALL: dict[str, Any] = {"max_model_len": 32, "kv_cache_memory": "1MiB", "threads": 1}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often the header of each file was read, by name."""
    counts: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        read = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path: counts.update([path.name]) or read(path))

    count(container, "_read_part")
    count(shards, "read_header")
    return counts


def test_the_headers_of_gguf_files_are_read_once(tiny: Callable[[str], Path], tmp_path: Path, reads: Counter[str]) -> None:
    target, draft = tmp_path / "target.gguf", tmp_path / "draft.gguf"
    write_gguf(target, tiny("llama-gqa"), edit=add_letters)
    write_gguf(draft, tiny("qwen2-tied"))
    llm = LLM(str(target), draft_model=str(draft), **SMALL)
    assert reads == {"target.gguf": 1, "draft.gguf": 1}
    assert llm.generate("ab cd", SamplingParams(max_tokens=3), use_tqdm=False)[0].outputs[0].text
    report_model(str(target), EngineOptions(threads=1))
    assert reads["target.gguf"] == 2


@pytest.mark.parametrize("options", [{}, {"quantization": "int8", "draft_quantization": "int4"}], ids=["plain", "int8"])
def test_the_headers_of_shards_are_read_once(options: dict[str, Any], tiny: Callable[[str], Path], reads: Counter[str]) -> None:
    target, draft = tiny("llama-sharded"), tiny("qwen2-tied")
    LLM(str(target), draft_model=str(draft), backend="cpu", **options, **SMALL)
    assert len(reads) > 3
    assert set(reads.values()) == {1}
    reads.clear()
    report_model(str(target), EngineOptions(backend="cpu", threads=1))
    assert len(reads) > 2 and set(reads.values()) == {1}
