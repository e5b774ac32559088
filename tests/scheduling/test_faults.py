"""An exception at any call of a step ends at most the requests that it belongs to; all other answers stay exact."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.exhaustive import EXHAUSTIVE, repeats

from .fault import raise_at_call
from .world import FEATURES, World

# What a step asks of the blocks, the sampler, the answers and the drafter of one request.
ONE_REQUEST = (
    "KvCacheManager.reserve",
    "KvCacheManager.open",
    "KvCacheManager.fork",
    "KvCacheManager.close",
    "KvCacheManager.commit",
    "KvCacheManager.slot_moves",
    "KvCacheManager.block_tables",
    "KvCacheManager.block_hashes",
    "KvCacheManager.match_prefix",
    "KvCacheManager.set_pins",
    "KvCacheManager.use_pins",
    "PinTable.pin",
    "PinTable.use",
    "PinTable.drop_one",
    "BlockAllocator.allocate",
    "Sequence.exit_plan",
    "Sequence.record_exit",
    "Draft.truncate",
    "SamplingRow.position",
    "sampling_row",
    "Sampler.sample",
    "Sampler.logprobs",
    "Sampler.beam_logprobs",
    "BeamSearch.advance",
    "Completion.push",
    "Completion.end",
    "Completion.delta",
    "Completion.output",
    "RequestState.record_draft",
    "RequestState.deltas",
    "StepOutcome.accept",
)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Planted exceptions are logged with their tracebacks, thousands of them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def prepared(seed: int) -> World:
    """Return a world of some requests, in the middle of their work."""
    world = World(seed, frozenset(FEATURES) - {"abort"})
    for _ in range(6):
        world.add()
    for _ in range(2 + seed % 9):
        world.step()
    return world


def calls_of_a_step(seed: int, functions: tuple[str, ...]) -> int:
    return prepared(seed).step_with_fault(0, functions).count


def after_fault(seed: int, number: int, functions: tuple[str, ...]) -> World:
    """Let one step raise, then finish all requests and a new one. The world checks every answer and every block."""
    world = prepared(seed)
    world.step_with_fault(number, functions)
    world.add()
    world.drain()
    return world


@pytest.mark.parametrize("seed", range(repeats("faults")))
def test_an_exception_of_one_request_ends_no_other(seed: int) -> None:
    count = calls_of_a_step(seed, ONE_REQUEST)
    assert count > 10
    for number in range(1, count + 1):
        world = after_fault(seed, number, ONE_REQUEST)
        assert world.failed <= 1, (number, world.failed)


@pytest.mark.parametrize("seed", range(8 if EXHAUSTIVE else 1))
def test_an_exception_anywhere_leaves_an_exact_engine(seed: int) -> None:
    count = calls_of_a_step(seed, ())
    for number in range(1 + seed, count + 1, 1 if EXHAUSTIVE else -(-count // 80)):
        after_fault(seed, number, ())


@pytest.mark.parametrize("number", [5, 60, 200, 400])
def test_a_step_that_an_interrupt_cuts_short_ends_the_requests_and_leaves_an_exact_engine(number: int) -> None:
    world = prepared(1)
    with pytest.raises(KeyboardInterrupt), raise_at_call(number, kind=KeyboardInterrupt):
        world.engine.step()
    world.faulty = True
    num_running = len(world.requests)
    world.step()
    assert world.failed == num_running > 0
    world.add()
    world.drain()


def test_a_failure_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: an engine that catches the exception of a request and lets the request run on."""
    monkeypatch.setattr("hasten.engine.step_outcome.StepOutcome.fail_by_exception", lambda *_: None)

    def all_faults() -> None:
        for number in range(1, calls_of_a_step(0, ("Completion.push",)) + 1):
            after_fault(0, number, ("Completion.push",))

    with pytest.raises((AssertionError, KeyError, IndexError)):
        all_faults()


def test_blocks_of_a_failed_request_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that fails in the step that computes its prompt leaves nothing in the prefix cache."""
    monkeypatch.setattr("hasten.engine.completion.Completion.push", lambda *_: 1 / 0)
    world = World(0, frozenset({"prefix cache"}))
    world.faulty = True
    for _ in range(4):
        world.add()
    world.drain()
    assert world.failed == 4
    assert not any(allocator._cached for allocator in world.kv.allocators)
