"""Info, the OpenAPI document, and which paths have errors in TGI's form."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.serving.live_server import live_server

from hasten import AsyncLLM
from hasten.core.version import __version__
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.app import create_app
from hasten.serving.models.base import ModelEntry
from hasten.serving.models.single import SingleModel
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.tgi.errors import GenerationFailed, write_error
from hasten.serving.tgi.surface import tgi_surface


def test_info_has_the_model_and_the_limits(tgi: httpx.Client) -> None:
    found = tgi.get("/info").json()
    assert (found["model_id"], found["model_pipeline_tag"]) == ("demo", "text-generation")
    assert (found["max_input_tokens"], found["max_total_tokens"], found["max_best_of"]) == (511, 512, 1)
    assert (found["router"], found["version"]) == ("hasten", __version__)


def test_info_does_not_load_a_model(demo_llm: AsyncLLM) -> None:
    class Sleeping(SingleModel):
        def entries(self) -> list[ModelEntry]:
            return [ModelEntry("sleeping", "demo", 0, is_loaded=False)]

    app = create_app(ServerState(ServerOptions(max_requests=7), Sleeping("sleeping", demo_llm)), [tgi_surface()])
    with live_server(app) as url:
        found = httpx.get(f"{url}/info").json()
    assert (found["model_id"], found["max_input_tokens"], found["max_total_tokens"]) == ("sleeping", None, None)
    assert found["max_concurrent_requests"] == 7


def test_the_document_has_the_schemas(tgi: httpx.Client) -> None:
    paths = tgi.get("/openapi.json").json()["paths"]
    for path in ("/generate", "/generate_stream", "/"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"inputs", "parameters"} <= schema["properties"].keys()
        assert ("stream" in schema["properties"]) == (path == "/")
        assert paths[path]["post"]["responses"].keys() >= {"200", "422", "424", "429"}
    contents = {path: paths[path]["post"]["responses"]["200"]["content"] for path in ("/", "/generate", "/generate_stream")}
    assert contents["/"].keys() == {"application/json", "text/event-stream"}
    assert (contents["/generate"].keys(), contents["/generate_stream"].keys()) == ({"application/json"}, {"text/event-stream"})
    event = contents["/generate_stream"]["text/event-stream"]["schema"]
    frame = event["properties"]["data"]["contentSchema"]["anyOf"][0]  # or an error
    assert frame["properties"].keys() == {"index", "token", "top_tokens", "generated_text", "details"}


def test_only_its_own_paths_have_errors_in_its_form(tgi: httpx.Client) -> None:
    for path in ("/", "/generate", "/generate_stream", "/info"):
        assert tgi.put(path).json() == {"error": "Method Not Allowed", "error_type": "method_not_allowed"}
    for path in ("/v1/templates", "/other"):
        assert tgi.put(path).json()["error"]["type"]


def test_a_full_queue_is_an_overload(demo_llm: AsyncLLM) -> None:
    state = ServerState(ServerOptions(), SingleModel("demo", demo_llm, max_requests=1))
    with state.admission.place("demo", 1), live_server(create_app(state, [tgi_surface()])) as url:
        for path in ("/generate", "/generate_stream", "/"):
            response = httpx.post(url + path, json={"inputs": "x"})
            assert (response.status_code, response.json()["error_type"]) == (429, "overloaded")
            assert response.headers["retry-after"] == "1"
    assert asyncio.run(demo_llm.stats())["requests"]["waiting"] == 0


@pytest.mark.parametrize("kind", ErrorKind)
def test_each_kind_of_error_has_a_type(kind: ErrorKind) -> None:
    expected = {
        "RATE_LIMIT": "overloaded",
        "INTERNAL": "incomplete_generation",
        "INVALID_REQUEST": "validation",
        **dict.fromkeys(("TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "HEADERS_TOO_LARGE"), "validation"),
    }
    found = write_error(ApiError(kind, "why"), "")
    assert found == {"error": "why", "error_type": expected.get(kind.name, found["error_type"])}
    assert found["error_type"] != "validation" or kind.name in expected
    assert write_error(GenerationFailed("why"), "") == {"error": "why", "error_type": "generation"}
