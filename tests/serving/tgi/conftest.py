"""One server with TGI's routes for the tests of this folder, and the same model in process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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
from hasten.serving.tgi.surface import tgi_surface


@pytest.fixture(scope="session")
def tgi(demo_llm: AsyncLLM) -> Iterator[httpx.Client]:
    state = ServerState(ServerOptions(default_max_tokens=20), SingleModel("demo", demo_llm))
    with live_server(create_app(state, [tgi_surface(), native_surface()])) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """Return the model of the server in this process: the oracle of its answers."""
    with LLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512) as llm:
        yield llm


def frames_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the frames of a stream; each event is ``data:``, JSON and two line feeds."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.content.split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data:")) for event in events if event.startswith(b"data:{")]
