"""One server with hasten's own routes and TGI's for a module's tests, and the same model in process."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.serving.live_server import live_server

from hasten import LLM
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.native.surface import native_surface
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState


@pytest.fixture(scope="session")
def client(demo_llm: AsyncLLM) -> Iterator[httpx.Client]:
    """Return a client of a server without keys, which serves the demo model as "demo"."""
    state = ServerState(ServerOptions(max_prompts=4), SingleModel("demo", demo_llm))
    with live_server(create_app(state, [native_surface()])) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """Return the model of the server in this process: the oracle of its answers."""
    with LLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512) as llm:
        yield llm


def error_of(response: httpx.Response) -> tuple[int, str | None, str]:
    """Return the status, the field at fault and the message of an error in OpenAI's form."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]
