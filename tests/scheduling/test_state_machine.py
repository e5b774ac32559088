"""Any events: the engine stays exact, leaks no block, finishes every request (P6, P7, P8, P28)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .world import FEATURES, World


class EngineMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), enabled=st.sets(st.sampled_from(FEATURES)))
    def start(self, seed: int, enabled: set[str]) -> None:
        self.world = World(seed, frozenset(enabled))

    @rule()
    def add(self) -> None:
        if len(self.world.requests) < 10:
            self.world.add()

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule()
    def abort(self) -> None:
        self.world.abort()

    @rule()
    def preempt(self) -> None:
        self.world.preempt()

    @rule()
    def evict(self) -> None:
        self.world.kv.clear_cached()

    @rule()
    def save(self) -> None:
        self.world.save()

    @rule()
    def load(self) -> None:
        self.world.load()

    @rule()
    def fail_an_allocation(self) -> None:
        """Make the next reservation find no block."""
        self.world.kv.fail_next = True

    @rule()
    def fail_a_step(self) -> None:
        """Make the model raise: the requests of that step end with an error, and all others are unaffected."""
        self.world.runner.fail_next = True
        self.world.step()
        self.world.runner.fail_next = False

    @rule(number=st.integers(1, 400))
    def raise_in_a_step(self, number: int) -> None:
        """Make one call of a step raise: at most the requests of the step end, and all others are unaffected."""
        self.world.step_with_fault(number)

    @rule(seconds=st.sampled_from((2.0, 15.0, 90.0)))
    def wait(self, seconds: float) -> None:
        """Let time pass, in which pins expire."""
        self.world.now += seconds
        self.world.step()

    @rule()
    def unpin(self) -> None:
        self.world.kv.pins.unpin()

    @rule()
    def finish(self) -> None:
        self.world.drain()

    @invariant()
    def blocks_are_consistent(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.expire_pins()


EngineMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestEngineMachine = EngineMachine.TestCase
