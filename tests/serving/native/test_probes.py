"""The routes for those who watch the server, over a registry whose health the test sets."""

import contextlib

import httpx
import pytest
from tests.serving.live_server import live_server

from hasten import __version__
from hasten.serving.app import create_app
from hasten.serving.models.health import EngineStatus, Health
from hasten.serving.native import probes
from hasten.serving.openai.errors import write_error
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.surface import Surface

SURFACE = Surface("probes", probes.router, probes.PROBE_PATHS, write_error)


class Registry:
    """Knows its health, and has no model."""

    now = Health()

    def entries(self):
        raise AssertionError("probes name no model")

    @contextlib.asynccontextmanager
    async def use(self, name):
        raise AssertionError("probes use no model")
        yield

    def health(self):
        return self.now


@pytest.fixture(scope="module")
def registry():
    return Registry()


@pytest.fixture(scope="module")
def client(registry):
    with live_server(create_app(ServerState(ServerOptions(), registry), [SURFACE])) as url, httpx.Client(base_url=url) as client:
        yield client


SILENT = Health(EngineStatus.NOT_ANSWERING, "1 of 2 engines: no answer for 7 s", 7.0)
STUCK = Health(EngineStatus.NOT_ANSWERING, "1 of 2 engines: no answer for 301 s", 301.0)


@pytest.mark.parametrize(
    "health, path, status, word",
    [
        (Health(), "/health", 200, "ready"),
        (Health(), "/readyz", 200, "ready"),
        (Health(), "/livez", 200, "alive"),
        (Health(EngineStatus.LOADING, "the first model loads"), "/health", 503, "loading"),
        (Health(EngineStatus.LOADING, "the first model loads"), "/readyz", 503, "loading"),
        (Health(EngineStatus.LOADING, "the first model loads"), "/livez", 200, "alive"),
        (Health(EngineStatus.RESTARTING, "1 of 1 engines"), "/health", 503, "restarting"),
        (Health(EngineStatus.RESTARTING, "1 of 1 engines"), "/readyz", 503, "restarting"),
        (Health(EngineStatus.RESTARTING, "1 of 1 engines"), "/livez", 200, "alive"),
        (SILENT, "/health", 503, "not_answering"),
        (SILENT, "/readyz", 503, "not_answering"),
        (SILENT, "/livez", 200, "alive"),
        (STUCK, "/livez", 503, "not_answering"),
        (Health(is_draining=True), "/health", 200, "ready"),
        (Health(is_draining=True), "/readyz", 503, "draining"),
        (Health(is_draining=True), "/livez", 200, "alive"),
    ],
)
def test_probes_say_whether_and_why(registry, client, health, path, status, word):
    registry.now = health
    answer = client.get(path)
    assert (answer.status_code, answer.json()["status"]) == (status, word)
    assert ("reason" in answer.json()) == (status != 200)
    assert answer.headers["cache-control"] == "no-store"


def test_version_is_that_of_hasten(client):
    assert client.get("/version").json() == {"version": __version__}


def test_probes_are_read_only(client):
    assert [client.post(path).status_code for path in probes.PROBE_PATHS] == [405] * 4
