"""The pool with engines and a clock of the test's own: which engine exists at which time, and what requests get."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.serving.models.fake_engine import FakeClock, FakeLLM, FakeLoader, settle

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.entrypoints.engine_process import client
from hasten.serving import model_server
from hasten.serving.api_error import ApiError
from hasten.serving.models import model_slot
from hasten.serving.models.health import EngineStatus
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.models.model_pool import ModelPool
from hasten.serving.server_options import ServerOptions


class Bench:
    """A pool and what it stands on."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.clock, self.loader = FakeClock(), FakeLoader()
        self.loader.clock = self.clock
        self.reasons: list[str] = []
        configs = [ModelConfig(name, f"/{name}", {"max_num_seqs": 2}) for name in names or ("a", "b", "c")]
        self.pool = ModelPool(
            configs, ServerOptions(**options), load=self.loader, clock=self.clock, on_too_many_deaths=self.reasons.append
        )

    async def use(self, name: str | None) -> FakeLLM:
        """Use a model for no time, and return its engine."""
        async with self.pool.use(name) as served:
            assert served.name == (name or "a") and served.path == f"/{served.name}"
            llm: Any = served.llm
            return llm

    async def hold(self, name: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
        """Begin a request, and return its engine and a function that ends it."""
        context = self.pool.use(name)
        served = await context.__aenter__()
        return served.llm, functools.partial(context.__aexit__, None, None, None)

    async def error(self, name: str | None) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.use(name)
        return caught.value

    @property
    def loaded(self) -> list[str]:
        return [engine.config.name for engine in self.loader.engines if not engine.is_closed]


def run(scenario: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Return a test that runs a scenario in a loop of its own, which no request outlives."""

    @functools.wraps(scenario)
    def test() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 20))  # type: ignore[arg-type]

    return test


@run
async def test_models_load_on_demand_and_once():
    bench = Bench()
    await bench.pool.load_default()
    assert bench.loaded == ["a"]
    assert [(entry.name, entry.is_loaded, entry.max_model_len) for entry in bench.pool.entries()] == [
        ("a", True, 512),
        ("b", False, None),
        ("c", False, None),
    ]
    bench.loader.gate.clear()
    requests = [asyncio.create_task(bench.use(name)) for name in "bbcbb"]
    await settle()
    assert not any(request.done() for request in requests)
    assert await bench.use(None) is bench.loader.engines[0]  # others serve meanwhile
    bench.loader.gate.set()
    engines = await asyncio.gather(*requests)
    assert [engine.config.name for engine in engines] == list("bbcbb")
    assert len(bench.loader.engines) == 3
    assert bench.loader.max_running == 1, "sizes of KV caches are shares of the free memory"
    await bench.pool.close()
    assert bench.loaded == []


@run
async def test_an_unknown_model_is_a_404_that_names_the_models():
    bench = Bench()
    error = await bench.error("d")
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "'a', 'b', 'c'" in error.message


@run
async def test_waiting_for_a_load_is_bounded_in_time_and_number():
    bench = Bench(request_timeout=0.02, max_requests=3)
    bench.loader.gate.clear()
    requests = [asyncio.create_task(bench.error("a")) for _ in range(5)]
    errors = await asyncio.gather(*requests)
    assert sorted(error.status for error in errors) == [429, 429, 503, 503, 503]
    assert {error.code for error in errors} == {"queue_full", "model_loading"}
    assert bench.pool.num_requests == 0
    bench.loader.gate.set()
    await settle()
    assert bench.loaded == ["a"], "the load goes on, for the request that comes next"
    await bench.pool.close()


@run
async def test_a_request_that_leaves_does_not_end_the_load():
    bench = Bench()
    bench.loader.gate.clear()
    first, second = asyncio.create_task(bench.use("a")), asyncio.create_task(bench.use("a"))
    await settle()
    first.cancel()
    await settle()
    bench.loader.gate.set()
    assert await second is bench.loader.engines[0]
    assert bench.pool.num_requests == 0
    await bench.pool.close()


@run
async def test_idle_models_are_unloaded_and_used_ones_are_not():
    bench = Bench(keep_alive=100.0)
    await bench.pool.load_default()
    _, end = await bench.hold("b")
    await bench.clock.advance(99)
    assert bench.loaded == ["a", "b"]
    await bench.use("a")
    await bench.clock.advance(99)
    assert bench.loaded == ["a", "b"]
    await bench.clock.advance(2)
    assert bench.loaded == ["b"]
    await bench.clock.advance(3000)
    assert bench.loaded == ["b"], "a request uses it"
    await end()
    await bench.clock.advance(99)
    assert bench.loaded == ["b"]
    await bench.clock.advance(2)
    assert bench.loaded == []
    assert bench.pool.health().is_ready, "models that are not loaded load on demand"
    assert (await bench.use("b")).config.name == "b"
    assert bench.loaded == ["b"]
    await bench.pool.close()


@run
async def test_without_keep_alive_models_stay():
    bench = Bench()
    await bench.use("b")
    await bench.clock.advance(5000)
    assert bench.loaded == ["b"]
    await bench.pool.close()


@run
async def test_the_least_recently_used_model_makes_room():
    bench = Bench(max_loaded_models=2)
    for name in "aba":
        await bench.use(name)
        await bench.clock.advance(1)
    await bench.use("c")
    assert bench.loaded == ["a", "c"]
    await bench.clock.advance(1)
    await bench.use("b")
    assert bench.loaded == ["c", "b"]
    await bench.pool.close()


@run
async def test_a_model_in_use_is_never_unloaded_for_another():
    bench = Bench(max_loaded_models=1)
    engine, end = await bench.hold("a")
    waiting = asyncio.create_task(bench.use("b"))
    await bench.clock.advance(5)
    assert (bench.loaded, engine.is_closed, waiting.done()) == (["a"], False, False)
    await end()
    assert (await waiting).config.name == "b"
    assert bench.loaded == ["b"]
    await bench.pool.close()


@run
async def test_a_request_that_no_longer_waits_for_room_loads_nothing():
    bench = Bench(max_loaded_models=1)
    _, end = await bench.hold("a")
    waiting = asyncio.create_task(bench.use("b"))
    await settle()
    waiting.cancel()
    await settle()
    await end()
    await bench.clock.advance(5)
    assert bench.loaded == ["a"]
    assert (await bench.use("c")).config.name == "c", "the turn to load is free again"
    await bench.pool.close()


@run
async def test_room_that_a_dead_engine_leaves_is_used():
    bench = Bench(max_loaded_models=1)
    engine, end = await bench.hold("a")
    waiting = asyncio.create_task(bench.use("b"))
    await settle()
    engine.is_dead = True
    await bench.clock.advance(1)
    assert (await waiting).config.name == "b"
    await bench.clock.advance(100)
    assert bench.loaded == ["b"], "a restart that no request waits for does not unload others"
    assert bench.pool.health().is_ready
    await end()
    assert (await bench.use("a")).config.name == "a"
    await bench.pool.close()


@run
async def test_a_dead_engine_is_restarted_with_back_off():
    bench = Bench("a")
    await bench.pool.load_default()
    delays = []
    for _ in range(5):
        bench.loader.engines[-1].is_dead = True
        await bench.clock.advance(1)
        died = bench.clock.now
        assert bench.loaded == []
        error = await bench.error("a")
        assert (error.status, error.code) == (503, "engine_unavailable")
        assert error.retry_after is not None and 0 < error.retry_after <= 30
        health = bench.pool.health()
        assert (health.engines, health.is_ready) == (EngineStatus.RESTARTING, False)
        await bench.clock.advance(error.retry_after)
        delays.append(bench.loader.times[-1] - died)
        assert bench.loaded == ["a"] and bench.pool.health().is_ready
        assert await bench.use("a") is bench.loader.engines[-1]
    assert delays == pytest.approx([0.5, 1, 2, 4, 8])
    assert bench.reasons == []
    await bench.pool.close()


@run
async def test_more_than_five_deaths_in_ten_minutes_end_the_server():
    bench = Bench("a")
    await bench.pool.load_default()
    for number in range(6):
        assert bench.reasons == [], number
        bench.loader.engines[-1].is_dead = True
        await bench.clock.advance(30)
    assert len(bench.reasons) == 1
    assert "'a' died 6 times" in bench.reasons[0]
    num_loads = len(bench.loader.engines)
    await bench.clock.advance(1000)
    assert len(bench.loader.engines) == num_loads
    assert not bench.pool.health().is_ready
    await bench.pool.close()


@run
async def test_deaths_of_long_ago_do_not_count():
    bench = Bench("a")
    await bench.pool.load_default()
    for _ in range(20):
        bench.loader.engines[-1].is_dead = True
        await bench.clock.advance(121)  # at most five in ten minutes
    assert bench.reasons == []
    assert bench.loaded == ["a"]
    await bench.pool.close()


@run
async def test_a_restart_that_fails_is_a_death():
    bench = Bench("a")
    await bench.pool.load_default()
    bench.loader.engines[-1].is_dead = True
    bench.loader.error = CheckpointError("no such file")
    await bench.clock.advance(1)
    assert bench.loaded == []
    await bench.clock.advance(0.5)
    assert bench.pool.health().engines is EngineStatus.RESTARTING
    await bench.clock.advance(60)
    assert len(bench.reasons) == 1
    assert bench.loader.times[1:] == pytest.approx([1001.5, 1002.5, 1004.5, 1008.5, 1016.5])
    await bench.pool.close()


@run
async def test_a_silent_engine_makes_the_server_unready_within_ten_seconds():
    bench = Bench()
    await bench.use("a")
    await bench.use("b")
    await bench.clock.advance(10)
    engine = bench.loader.of("b")[0]
    assert bench.pool.health().is_ready and engine.num_pings >= 9
    engine.is_silent = True
    stopped = bench.clock.now
    await bench.clock.advance(10)
    health = bench.pool.health()
    assert (health.engines, health.is_ready) == (EngineStatus.NOT_ANSWERING, False)
    assert "1 of 3 engines" in health.reason
    await bench.clock.advance(100)
    seconds = bench.pool.health().unanswered_seconds
    assert 100 <= seconds <= bench.clock.now - stopped + 1
    assert bench.loaded == ["a", "b"], "an engine that is slow is not killed"
    assert await bench.use("b") is engine, "a long step looks the same, so requests wait for it"
    engine.is_silent = False
    await bench.clock.advance(10)
    assert bench.pool.health().is_ready
    await bench.pool.close()


@run
async def test_an_engine_that_cannot_say_its_state_is_not_ready():
    bench = Bench("a")
    await bench.pool.load_default()

    async def fail() -> dict[str, Any]:
        raise ZeroDivisionError

    bench.loader.engines[0].stats = fail  # type: ignore[method-assign]
    await bench.clock.advance(2)
    assert bench.pool.health().engines is EngineStatus.NOT_ANSWERING
    await bench.pool.close()


def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_delay(caplog):
    asyncio.run(_load_a_broken_model())
    assert "alice" in caplog.text, "the log says why"


async def _load_a_broken_model() -> None:
    bench = Bench()
    await bench.pool.load_default()
    bench.loader.error = CheckpointError("no such folder: /home/alice/secret")
    error = await bench.error("b")
    assert (error.status, error.code) == (503, "engine_unavailable")
    assert "alice" not in error.message, "an error names files of the server"
    num_loads = len(bench.loader.times)
    for _ in range(100):
        await bench.error("b")
    assert len(bench.loader.times) == num_loads, "requests within the delay read no files"
    assert bench.pool.health().is_ready, "other models serve"
    bench.loader.error = None
    await bench.clock.advance(0.5)
    assert (await bench.use("b")).config.name == "b"
    assert bench.reasons == []
    await bench.pool.close()


@run
async def test_the_first_model_that_cannot_be_loaded_is_an_error_at_the_start():
    bench = Bench()
    bench.loader.error = CheckpointError("no such folder")
    with pytest.raises(CheckpointError, match="no such folder"):
        await bench.pool.load_default()
    await bench.pool.close()


@run
async def test_the_server_is_not_ready_while_the_first_model_loads():
    bench = Bench()
    bench.loader.gate.clear()
    start = asyncio.create_task(bench.pool.load_default())
    await settle()
    health = bench.pool.health()
    assert (health.engines, health.is_ready) == (EngineStatus.LOADING, False)
    bench.loader.gate.set()
    await start
    assert bench.pool.health().is_ready
    await bench.pool.close()


@run
async def test_a_server_that_drains_refuses_new_requests_and_ends_those_that_run():
    bench = Bench()
    _, end = await bench.hold("a")
    _, end_other = await bench.hold("b")
    bench.pool.drain()
    error = await bench.error("a")
    assert (error.status, error.code) == (503, "draining")
    health = bench.pool.health()
    assert (health.is_draining, health.is_ready, health.engines) == (True, False, EngineStatus.READY)
    assert not await bench.pool.wait_idle(0.01)
    idle = asyncio.create_task(bench.pool.wait_idle(10))
    await settle()
    await end()
    await settle()
    assert not idle.done()
    await end_other()
    assert await idle
    await bench.pool.close()


@run
async def test_requests_that_wait_for_a_load_end_with_the_server():
    bench = Bench()
    bench.loader.gate.clear()
    request = asyncio.create_task(bench.error("a"))
    await settle()
    await bench.pool.close()
    assert (await request).code == "draining"
    assert bench.loaded == []


def test_names_of_models_are_distinct():
    config = ModelConfig("a", "/a")
    with pytest.raises(InvalidOption, match="a name of its own"):
        ModelPool([config, config], ServerOptions())
    with pytest.raises(InvalidOption):
        ModelPool([], ServerOptions())
    with pytest.raises(InvalidOption, match="unknown engine option"):
        ModelConfig("a", "/a", {"thread": 1})


@pytest.mark.parametrize("seqs, limit, expected", [(1, None, 33), (64, None, 320), (8, None, 40), (64, 10, 10)])
def test_a_model_has_a_bound_on_its_requests(seqs, limit, expected):
    assert ModelConfig("a", "/a", {"max_num_seqs": seqs}).max_requests(limit) == expected


def test_a_process_is_killed_before_its_end_is_given_up() -> None:
    """Otherwise the memory of a stopped engine is still in use when the next one is loaded."""
    assert client.CLOSE_SECONDS < model_slot.CLOSE_TIMEOUT < model_server.CLOSE_TIMEOUT
