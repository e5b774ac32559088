"""Fixtures of the server's tests: one demo model for the whole session, and applications around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
from tests.serving.live_server import live_server
from tests.serving.watched_server import CANARY, NUM_CANARY_TOKENS, WatchedServer, watched_server

from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface


@pytest.fixture(scope="session")
def demo_llm() -> Iterator[AsyncLLM]:
    """Return the demo model. Any number of event loops may use it; tests must not close it."""
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512)
    yield llm
    asyncio.run(llm.close())


@pytest.fixture
def make_app(demo_llm: AsyncLLM) -> Callable[..., Any]:
    """Return a function from surfaces, and options of the server, to an application that serves the demo model as "demo"."""

    def make(surfaces: Sequence[Surface], *, llm: AsyncLLM | None = None, **options: Any) -> Any:
        state = ServerState(ServerOptions(**options), SingleModel("demo", llm or demo_llm))
        return create_app(state, surfaces)

    return make


@pytest.fixture
def serve(make_app: Callable[..., Any]) -> Callable[..., AbstractContextManager[str]]:
    """Return a function like ``make_app`` whose result is a context: ``with serve([surface]) as url:``."""

    def run(surfaces: Sequence[Surface], **options: Any) -> AbstractContextManager[str]:
        return live_server(make_app(surfaces, **options))

    return run


@pytest.fixture(scope="session")
def watched(demo_llm: AsyncLLM) -> Iterator[WatchedServer]:
    """Return a server in processes of its own, to which requests of any kind may be sent."""
    params = SamplingParams(temperature=0, max_tokens=NUM_CANARY_TOKENS, ignore_eos=True)
    expected = asyncio.run(demo_llm.generate(CANARY, params)).outputs[0].token_ids
    with watched_server(expected) as server:
        yield server
