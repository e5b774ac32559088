"""Equal requests are computed once, and each gets what it would get alone, also when others join or leave.

Only whole results are stored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from hasten.caching.base import StoredEntry, StoreUsage
from hasten.caching.guarded_store import GuardedStore
from hasten.caching.result_cache import ResultCache
from hasten.caching.result_key import EngineIdentity, engine_key
from hasten.caching.stored_result import StoredResult, decode_result
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.engine.engine import Engine
from hasten.entrypoints import shared_results
from hasten.entrypoints.shared_results import SharedResults
from hasten.kv.cache_manager import KvCacheManager
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler

from ..scheduling.oracle import OracleRunner, ReferenceModel
from ..scheduling.world import GROUPS

IDENTITY = EngineIdentity(weights="", text="", kernels="", library="", packages="", max_model_len=96, version="")


class DictStore:
    """The simplest store."""

    does_io = False
    counts_usage = True
    num_evicted = 0

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    def remove(self, key: bytes) -> None:
        self.values.pop(key, None)

    def clear(self) -> int:
        raise NotImplementedError

    def entries(self) -> Iterator[StoredEntry]:
        raise NotImplementedError

    def usage(self) -> StoreUsage:
        return StoreUsage(num_entries=len(self.values), num_bytes=0)

    def close(self) -> None:
        pass


class World:
    """An engine around the oracle model with a result cache in front, and the answers that each request must get."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        kv = KvCacheManager(GROUPS, 400, 4)
        self.scheduler = Scheduler(SchedulerConfig(max_num_seqs=9, max_num_batched_tokens=16, max_model_len=96), kv)
        self.runner = OracleRunner(GROUPS, 400, 4, lambda sequence: self.scheduler.sequence(sequence).request.cache_salt)
        self.engine = Engine(self.runner, self.scheduler, lambda request: None, Sampler(), clock=lambda: self.now)
        self.store = DictStore()
        self.cache = ResultCache(GuardedStore(self.store), engine_key(EngineOptions(), IDENTITY), clock=lambda: self.now)
        self.front = SharedResults(self.engine, self.cache)
        self.reference, self.draw = ReferenceModel(GROUPS), random.Random(seed)
        self.requests: dict[str, Request] = {}
        self.received: dict[str, list[Delta]] = {}
        self.finished: dict[str, Delta] = {}
        self.num_requests = self.num_from_store = 0

    def request(self, prompt: tuple[int, ...] = (3, 4, 5), tenant: str = "", **settings: Any) -> Request:
        self.num_requests += 1
        params = SamplingParams.from_dict({"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "seed": 7} | settings)
        return Request(
            request_id=f"r{self.num_requests}",
            prompt_token_ids=prompt,
            params=params,
            arrival=self.now,
            cache_salt=tenant,
            is_determined=True,
        )

    def send(self, request: Request) -> str:
        found = self.cache.find(request)
        self.requests[request.request_id], self.received[request.request_id] = request, []
        if isinstance(found, StoredResult):
            self.num_from_store += 1
            self.take(list(found.replay(request, self.now)))
        else:
            self.front.add(found)
        return request.request_id

    def take(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.request_id not in self.finished, "a delta after the end"
            self.received[delta.request_id].append(delta)
            if delta.output is not None:
                self.finished[delta.request_id] = delta

    def step(self) -> None:
        self.now += 1.0
        self.take(self.front.step())

    def drain(self) -> None:
        for _ in range(2000):
            if not self.front.has_unfinished_requests:
                break
            self.step()
        assert not self.front.has_unfinished_requests
        assert set(self.finished) == set(self.requests), "a request got no end"
        assert not self.front._flights and not self.front._flight_of and not self.front._ready
        self.cache.flush()

    def check(self, request_id: str, *, aborted: bool = False) -> None:
        """Assert that a request got exactly the tokens of the reference, in deltas and in its output."""
        request, output = self.requests[request_id], self.finished[request_id].output
        assert output is not None and output.request_id == request_id and output.metrics.arrival == request.arrival
        for completion, expected in zip(output.outputs, self.reference.outputs(request), strict=True):
            streamed = [t for d in self.received[request_id] if d.index == completion.index for t in d.token_ids]
            assert tuple(streamed) == completion.token_ids
            assert completion.token_ids == (expected[: len(streamed)] if aborted else expected)
        assert all(delta.request_id == request_id for delta in self.received[request_id])


def test_equal_requests_are_computed_once() -> None:
    world = World()
    ids = [world.send(world.request()) for _ in range(64)]
    world.drain()
    for request_id in ids:
        world.check(request_id)
    assert world.engine.stats.num_steps == 12  # as one request alone
    assert world.cache.stats()["shared"] == 63 and len(world.store.values) == 1


def test_a_request_that_joins_later_gets_everything() -> None:
    world = World()
    first = world.send(world.request())
    for _ in range(5):
        world.step()
    second = world.send(world.request())
    world.drain()
    world.check(first)
    world.check(second)
    assert world.engine.stats.num_steps == 12


def test_a_request_that_joins_later_has_no_time_before_its_arrival() -> None:
    world = World()
    first = world.send(world.request())
    for _ in range(5):
        world.step()
    second = world.send(world.request())
    world.drain()
    metrics = [output.metrics for request_id in (first, second) if (output := world.finished[request_id].output) is not None]
    assert [each.arrival for each in metrics] == [0.0, 5.0]
    assert [each.ttft for each in metrics] == [1.0, 0.0] and metrics[1].first_scheduled == 5.0


def test_an_interrupted_step_loses_no_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a request that has joined are given by a later step."""
    world = World()
    world.send(world.request())
    world.step()
    second = world.send(world.request())

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            world.front.step()
    world.drain()
    world.check(second)


@pytest.mark.parametrize("leaving", ["r1", "r2", "r3"])
def test_a_request_that_leaves_takes_no_other_along(leaving: str) -> None:
    world = World()
    ids = [world.send(world.request(n=2, temperature=1.0)) for _ in range(3)]
    for _ in range(4):
        world.step()
    world.take(world.front.abort(leaving))
    world.drain()
    world.check(leaving, aborted=True)
    output = world.finished[leaving].output
    assert output is not None and {answer.finish_reason for answer in output.outputs} == {FinishReason.ABORT}
    for request_id in set(ids) - {leaving}:
        world.check(request_id)
    assert len(world.store.values) == 1


@pytest.mark.parametrize("num_equal", [1, 2])
def test_a_request_that_leaves_ends_each_answer_once(num_equal: int) -> None:
    """As the engine's abort does, which a request alone gets: an answer that has stopped already keeps its end."""
    world = World()
    answers = world.reference.outputs(world.request(n=2, temperature=1.0))
    stop = next(token for token in answers[0][:4] if token not in answers[1])
    ids = [world.send(world.request(n=2, temperature=1.0, stop_token_ids=(stop,))) for _ in range(num_equal)]
    for _ in range(6):
        world.step()
    world.take(world.front.abort(ids[0]))
    ends = [(delta.index, delta.finish_reason) for delta in world.received[ids[0]] if delta.finish_reason]
    assert ends == [(0, FinishReason.STOP), (1, FinishReason.ABORT)]
    assert ids[0] in world.finished


def test_the_last_one_that_leaves_ends_the_computation_and_nothing_is_stored() -> None:
    world = World()
    ids = [world.send(world.request()) for _ in range(3)]
    world.step()
    for request_id in ids:
        world.take(world.front.abort(request_id))
    assert not world.front.has_unfinished_requests and not world.store.values
    world.drain()
    assert all(allocator.num_held == 0 for allocator in world.scheduler.kv.allocators)


def test_an_error_reaches_all_and_is_not_stored() -> None:
    world = World()
    ids = [world.send(world.request()) for _ in range(3)]
    world.step()
    world.runner.fail_next = True
    world.drain()
    outputs = [world.finished[request_id].output for request_id in ids]
    assert all(output is not None and output.error is not None for output in outputs)
    assert not world.store.values
    again = world.send(world.request())
    world.drain()
    world.check(again)


def test_tenants_share_nothing() -> None:
    world = World()
    ids = [world.send(world.request(tenant=tenant)) for tenant in ("red", "blue", "", "red")]
    world.drain()
    for request_id in ids:
        world.check(request_id)
    assert len(world.store.values) == 3 and world.cache.stats()["shared"] == 1


def test_a_result_that_came_between_lookup_and_arrival_is_used() -> None:
    world = World()
    late = world.request()
    found = world.cache.find(late)
    assert isinstance(found, Request)
    world.now += 1.0
    world.send(world.request())
    world.drain()
    steps = world.engine.stats.num_steps
    world.requests[late.request_id], world.received[late.request_id] = late, []
    world.front.add(found)
    world.drain()
    world.check(late.request_id)
    assert world.engine.stats.num_steps == steps
    early = world.cache.find(world.request(max_tokens=13))
    world.store.values.clear()  # as by ``hasten cache clear``: a lookup from now on misses
    assert isinstance(early, Request) and isinstance(world.cache.find(world.request()), Request)


def test_an_id_that_is_running_is_refused() -> None:
    world = World()
    request = world.cache.find(world.request())
    assert isinstance(request, Request)
    world.front.add(request)
    with pytest.raises(InvalidRequest, match="id"):
        world.front.add(request)


def run_randomly(seed: int, steps: int) -> World:
    """Send, join, leave and fail at random, over few distinct requests of two tenants."""
    world = World(seed)
    draw, aborted = world.draw, set()
    for _ in range(steps):
        for _ in range(draw.choice((0, 1, 2, 4))):
            settings: dict[str, Any] = draw.choice(({}, {"n": 2, "temperature": 1.0}, {"beam_width": 2, "n": 2}, {"logprobs": 1}))
            prompt = draw.choice(((1,), (3, 4, 5), (3, 4, 5, 6, 7, 8, 9)))
            world.send(world.request(prompt, draw.choice(("", "red")), max_tokens=draw.choice((3, 9)), **settings))
        running = sorted(set(world.requests) - set(world.finished))
        if running and draw.random() < 0.3:
            request_id = draw.choice(running)
            aborted.add(request_id)
            world.take(world.front.abort(request_id))
        if draw.random() < 0.25:
            world.store.values.clear()
        world.step()
    world.drain()
    for request_id in world.requests:
        output = world.finished[request_id].output
        if request_id not in aborted or (output is not None and output.outputs[0].finish_reason != FinishReason.ABORT):
            world.check(request_id, aborted=request_id in aborted)
    for key, value in world.store.values.items():
        assert all(answer.finish_reason != FinishReason.ABORT for answer in decode_result(key, value).outputs)
    return world


@pytest.mark.parametrize("seed", range(24))
def test_any_mix_of_equal_requests_gives_each_its_own_answer(seed: int) -> None:
    world = run_randomly(seed, 60)
    assert world.cache.stats()["shared"] > 3 and world.num_from_store > 0


def leave_ends_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        SharedResults, "abort", lambda self, request_id: self._share(self._engine.abort(self._flight_of[request_id].engine_id))
    )


def forget_what_came_before(patch: pytest.MonkeyPatch) -> None:
    add = SharedResults.add

    def forgetful(self: SharedResults, request: Request) -> None:
        num_ready = len(self._ready)
        add(self, request)
        del self._ready[num_ready:]

    patch.setattr(SharedResults, "add", forgetful)


def store_aborts(patch: pytest.MonkeyPatch) -> None:
    of = StoredResult.of

    def careless(deltas: list[Delta]) -> StoredResult | None:
        output = deltas[-1].output
        cuts = tuple((delta.index, len(delta.text), len(delta.token_ids)) for delta in deltas)
        return of(deltas) or (None if output is None else StoredResult(output.outputs, cuts))

    patch.setattr(shared_results.StoredResult, "of", careless)


def share_between_tenants(patch: pytest.MonkeyPatch) -> None:
    from hasten.caching import result_cache, result_key

    original = result_key.result_key
    import dataclasses

    patch.setattr(result_cache, "result_key", lambda request, engine: original(dataclasses.replace(request, cache_salt=""), engine))


@pytest.mark.parametrize("plant", [leave_ends_all, forget_what_came_before, store_aborts, share_between_tenants])
def test_planted_faults_are_found(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        [run_randomly(seed, 60) for seed in range(24)]
