"""Statistics of caches, and routes that empty them for all tenants."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send
from tests.serving.live_server import live_server
from tests.serving.native.conftest import error_of

from hasten import AsyncLLM, SamplingParams
from hasten.serving.app import create_app
from hasten.serving.caller import STATE_KEY, Caller
from hasten.serving.models.base import ModelEntry
from hasten.serving.models.served_model import ServedModel
from hasten.serving.models.single import SingleModel
from hasten.serving.native.surface import native_surface
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

PROMPT = "def add(a, b):\n    return a + b\n" * 4  # several blocks
Tenants = Callable[[str], AbstractContextManager[httpx.Client]]  # from an API key to a client
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def caching_llm() -> Iterator[AsyncLLM]:
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512, result_cache="memory:")
    yield llm
    asyncio.run(llm.close())


@pytest.fixture
def caching(caching_llm: AsyncLLM) -> Iterator[httpx.Client]:
    app = create_app(ServerState(ServerOptions(), SingleModel("demo", caching_llm)), [native_surface()])
    with live_server(app) as url, httpx.Client(base_url=url) as client:
        yield client


def test_both_caches_are_seen_and_emptied(caching: httpx.Client, caching_llm: AsyncLLM) -> None:
    def run() -> int:
        return asyncio.run(caching_llm.generate(PROMPT, GREEDY)).metrics.num_cached_tokens

    assert (run(), run()) == (0, 0)  # the second is a stored result
    found = caching.get("/cache").json()
    assert (found["model"], found["is_loaded"]) == ("demo", True)
    assert (found["result_cache"]["hits"], found["result_cache"]["stored"]) == (1, 1)
    assert found["kv"]["cached_blocks"] > 0

    assert caching.post("/reset_result_cache").json() == {"model": "demo", "removed": 1}
    assert run() > 0  # computed again, on cached blocks
    assert caching.post("/reset_result_cache").json()["removed"] == 1
    num_blocks = caching.get("/cache").json()["kv"]["cached_blocks"]
    assert caching.post("/reset_prefix_cache", params={"model": "demo"}).json() == {"model": "demo", "removed": num_blocks}
    assert caching.get("/cache").json()["kv"]["cached_blocks"] == 0
    assert run() == 0


def test_what_vllm_permits_and_this_engine_cannot_is_refused(client: httpx.Client) -> None:
    for name in ("reset_running_requests", "reset_external"):
        assert error_of(client.post("/reset_prefix_cache", params={name: "true"}))[:2] == (400, name)
        assert client.post("/reset_prefix_cache", params={name: "false"}).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/cache"), ("POST", "/reset_prefix_cache"), ("POST", "/reset_result_cache")])
def test_an_unknown_model_is_named(client: httpx.Client, method: str, path: str) -> None:
    assert error_of(client.request(method, path, params={"model": "other"}))[:2] == (404, "model")


def test_a_model_without_a_result_cache_has_none_to_empty(client: httpx.Client) -> None:
    status, param, message = error_of(client.post("/reset_result_cache"))
    assert (status, param) == (400, "model")
    assert "no result cache" in message


class Sleeping(SingleModel):
    """A model that is not loaded, and fails the test if it is."""

    def entries(self) -> list[ModelEntry]:
        return [ModelEntry("demo", "demo", 0, is_loaded=False)]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        raise AssertionError("the model was loaded")
        yield


def test_a_model_that_is_not_loaded_stays_so(demo_llm: AsyncLLM) -> None:
    app = create_app(ServerState(ServerOptions(), Sleeping("demo", demo_llm)), [native_surface()])
    with live_server(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/cache").json() == {"model": "demo", "is_loaded": False}
        assert client.post("/reset_prefix_cache").json() == {"model": "demo", "removed": 0}
        assert client.post("/reset_result_cache").json() == {"model": "demo", "removed": 0}


def with_keys(app: Any) -> Callable[[Scope, Receive, Send], Any]:
    """Return the application behind what the check of API keys does for a right key."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            key = dict(scope["headers"])[b"authorization"].removeprefix(b"Bearer ")
            scope.setdefault("state", {})[STATE_KEY] = Caller(hashlib.sha256(key).hexdigest())
        await app(scope, receive, send)

    return checked


@pytest.fixture(scope="module")
def tenants(demo_llm: AsyncLLM) -> Iterator[Tenants]:
    options = ServerOptions(api_keys=("owner", "guest"), admin_keys=("owner",))
    app = create_app(ServerState(options, SingleModel("demo", demo_llm)), [native_surface()])
    with live_server(with_keys(app)) as url:
        yield lambda key: httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"})


def test_a_tenant_cannot_empty_the_caches_of_others(tenants: Tenants) -> None:
    with tenants("owner") as owner, tenants("guest") as guest:
        assert owner.post("/pin_kv", json={"prompt": PROMPT, "seconds": 60}).status_code == 200
        for path in ("/reset_prefix_cache", "/reset_result_cache"):
            status, _, message = error_of(guest.post(path))
            assert status == 403
            assert "admin_keys" in message
        assert guest.post("/unpin_kv", json={"prompt": PROMPT}).json()["removed"] == 0
        assert owner.get("/cache").json()["pins"]["pinned_blocks"] > 0
        assert owner.post("/reset_prefix_cache").status_code == 200
        assert owner.get("/cache").json()["pins"]["pinned_blocks"] == 0


def test_a_tenant_does_not_see_the_pins_of_others(tenants: Tenants) -> None:
    with tenants("owner") as owner, tenants("guest") as guest:
        owner.post("/pin_kv", json={"prompt": PROMPT, "seconds": 60})
        assert len(owner.get("/cache").json()["pins"]["pins"]) == 1
        seen = guest.get("/cache").json()
        assert "pins" not in seen["pins"]
        assert seen["pins"]["pinned_blocks"] > 0
        owner.post("/unpin_kv", json={"prompt": PROMPT})


def test_a_tenant_does_not_see_where_results_are_stored(
    demo_llm: AsyncLLM,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tenants: Callable[..., AbstractContextManager[httpx.Client]],
) -> None:
    counts = {"hits": 1, "misses": 2, "shared": 0, "hit_rate": 0.3, "stored": 2, "dropped": 0, "damaged": 0, "unwritten": 0}
    found = asyncio.run(demo_llm.stats()) | {
        "result_cache": {**counts, "passed": {}, "off_because": f"{tmp_path} cannot be read", "store": {"entries": 3}}
    }

    async def stats() -> dict[str, Any]:
        return found

    monkeypatch.setattr(demo_llm, "stats", stats)
    with tenants("guest") as guest, tenants("owner") as owner:
        assert guest.get("/cache").json()["result_cache"] == {**counts, "passed": {}}
        assert owner.get("/cache").json()["result_cache"] == found["result_cache"]
