"""The OpenAPI document has each route with its schemas, and each path has errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from hasten.serving.native.surface import native_surface

ROUTES = {
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("get", "/tokenizer_info"),
    ("post", "/score"),
    ("post", "/v1/score"),
    ("post", "/choose"),
    ("post", "/v1/choose"),
    ("get", "/cache"),
    ("post", "/reset_prefix_cache"),
    ("post", "/reset_result_cache"),
    ("post", "/pin_kv"),
    ("post", "/unpin_kv"),
    ("get", "/v1/templates"),
    ("post", "/v1/templates/render"),
}
PROBES = ("/health", "/livez", "/readyz", "/version")
WITHOUT_BODY = {"/tokenizer_info", "/cache", "/reset_prefix_cache", "/reset_result_cache", "/v1/templates"}


@pytest.fixture(scope="module")
def paths(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_each_route_has_its_schemas(paths: dict[str, Any], method: str, path: str) -> None:
    route = paths[path][method]
    assert "$ref" in route["responses"]["200"]["content"]["application/json"]["schema"]
    assert "$ref" in route["responses"]["400"]["content"]["application/json"]["schema"]
    assert route["description"]
    assert ("requestBody" in route) == (path not in WITHOUT_BODY)
    if path not in WITHOUT_BODY:
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        assert "$ref" not in str(schema)


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_each_path_has_errors_in_openais_form(client: httpx.Client, method: str, path: str) -> None:
    assert path.startswith(native_surface().prefixes)
    found = client.put(path)
    assert (found.status_code, found.json()["error"]["type"]) == (405, "invalid_request_error")
    assert found.headers["x-request-id"]


def test_an_error_of_the_engine_leaves_the_connection_open(client: httpx.Client) -> None:
    with httpx.Client(base_url=client.base_url, limits=httpx.Limits(max_connections=1)) as one:
        for _ in range(3):
            assert one.post("/score", json={"prompt": [9000], "continuations": ["y"]}).status_code == 400
        assert one.get("/v1/templates").status_code == 200


@pytest.mark.parametrize("path", PROBES)
def test_the_probes_are_among_the_routes(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200
    assert path.startswith(native_surface().prefixes)
