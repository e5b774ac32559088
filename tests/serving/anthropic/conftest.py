"""Servers of Anthropic's surface: one of the demo model, and one whose answers are written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from tests.serving.anthropic.written_llm import WrittenLLM, thinking_folder
from tests.serving.live_server import live_server

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.anthropic.surface import anthropic_surface
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState


@pytest.fixture(scope="session")
def client(demo_llm: AsyncLLM) -> Iterator[httpx.Client]:
    """Return a client of the demo model."""
    state = ServerState(ServerOptions(max_messages=8), SingleModel("demo", demo_llm))
    with live_server(create_app(state, [anthropic_surface()])) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="session")
def opened_written_llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WrittenLLM]:
    llm = WrittenLLM(thinking_folder(tmp_path_factory.mktemp("thinking")))
    yield llm
    asyncio.run(llm.close())


@pytest.fixture
def written_llm(opened_written_llm: WrittenLLM) -> WrittenLLM:
    """Return the model that answers as it is told; it has not been asked yet."""
    opened_written_llm.prompts.clear()
    opened_written_llm.params.clear()
    opened_written_llm.write("Hello")
    opened_written_llm.is_stuck = False
    opened_written_llm.answer_began.clear()
    opened_written_llm.answer_ended.clear()
    return opened_written_llm


@pytest.fixture(scope="session")
def written_url(opened_written_llm: WrittenLLM) -> Iterator[str]:
    """Return the URL of a server whose answers are those of ``written_llm``."""
    state = ServerState(ServerOptions(), SingleModel("demo", opened_written_llm))
    with live_server(create_app(state, [anthropic_surface()])) as url:
        yield url
