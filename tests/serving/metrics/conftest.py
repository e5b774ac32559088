"""A watched server around a demo model that drafts and caches results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from tests.serving.metrics.traffic import Watched, watched_server

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.metrics import model_snapshot
from hasten.serving.models.single import SingleModel


@pytest.fixture(autouse=True, scope="module")
def patient() -> Iterator[None]:
    """Wait for engines as long as a busy machine takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_snapshot, "MAX_WAIT", 60.0)
        yield


@pytest.fixture(scope="session")
def drafting_llm() -> Iterator[AsyncLLM]:
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512, result_cache="memory:")
    yield llm
    asyncio.run(llm.close())


@pytest.fixture
def serve_watched(drafting_llm: AsyncLLM) -> Callable[..., AbstractContextManager[Watched]]:
    """Return a function from options to a running server of the demo model."""
    return lambda **options: watched_server(SingleModel("demo", drafting_llm), **options)
