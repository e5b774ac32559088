"""One server of the demo model for all tests of OpenAI's surface, and one of a demo that thinks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.serving.live_server import live_server

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.openai.surface import openai_surface
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

DEMO = Path(__file__).parents[3] / "src" / "hasten" / "demo" / "model"


@pytest.fixture(scope="session")
def client(demo_llm: AsyncLLM) -> Iterator[httpx.Client]:
    """Return a client of the demo model."""
    state = ServerState(ServerOptions(max_messages=8, max_prompts=4), SingleModel("demo", demo_llm))
    with live_server(create_app(state, [openai_surface()])) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="session")
def thinking_llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    """Return the demo model with a chat template that begins a thought where ``enable_thinking`` is set."""
    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    template = (DEMO / "chat_template.jinja").read_text()
    marker = "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    assert marker in template
    (folder / "chat_template.jinja").write_text(
        template.replace(marker, marker + "{{ '<think>\\n' if enable_thinking }}{# </think> #}")
    )
    options = {"threads": 1, "kv_cache_memory": "16MiB", "max_model_len": 512, "reasoning_parser": "qwen3"}
    llm = AsyncLLM(str(folder), **options)
    yield llm
    asyncio.run(llm.close())


@pytest.fixture(scope="session")
def thinking_client(thinking_llm: AsyncLLM) -> Iterator[httpx.Client]:
    state = ServerState(ServerOptions(), SingleModel("demo", thinking_llm))
    with live_server(create_app(state, [openai_surface()])) as url, httpx.Client(base_url=url, timeout=60) as opened:
        yield opened
