"""The circuit breaker against a slow model that reads the whole history anew for every question."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.caching.circuit_breaker import FIRST_WAIT, MAX_FAILURES, MAX_WAIT, CircuitBreaker

DELAYS = [0.0, 0.25, 0.5, 1.0, 2.0, 7.5, 59.75, 60.0]  # exact in binary


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Model:
    """Events in order: ("start", time, call), ("end", time, call, outcome)."""

    events: list[tuple[str, float, int, bool | None]] = field(default_factory=list)

    def state(self) -> tuple[list[float], int, set[int], bool]:
        """Return the times of the failures that count while open, failures in a row, calls that count, whether a probe runs."""
        open_since: list[float] = []  # the failure that opened the breaker, then those of probes
        row, current, probing = 0, set[int](), False
        for kind, time, call, outcome in self.events:
            if kind == "start":
                current.add(call)
                probing = bool(open_since)
            elif call in current:
                current.discard(call)
                if outcome is None:
                    probing = False
                elif outcome:
                    row = 0
                    if open_since:
                        open_since, current, probing = [], set(), False
                elif open_since:
                    open_since.append(time)
                    probing = False
                else:
                    row += 1
                    if row == MAX_FAILURES:
                        row, open_since, current, probing = 0, [time], set(), False
        return open_since, row, current, probing

    def admits(self, now: float) -> bool:
        open_since, _, _, probing = self.state()
        if not open_since:
            return True
        wait = min(FIRST_WAIT * 2 ** (len(open_since) - 1), MAX_WAIT)
        return not probing and now >= open_since[-1] + wait


STEP = st.one_of(
    st.just(("start",)),
    st.just(("start",)),
    st.tuples(st.just("wait"), st.sampled_from(DELAYS)),
    # Which of the running calls ends (0: the oldest), and how; None: interrupted.
    st.tuples(st.just("end"), st.integers(0, 3), st.sampled_from([True, False, False, False, False, None])),
)


@given(st.lists(STEP, max_size=80))
@settings(max_examples=400, deadline=None)
def test_the_breaker_equals_the_model(steps: list[tuple[object, ...]]) -> None:
    clock, model = FakeClock(), Model()
    breaker = CircuitBreaker(clock)
    numbers = itertools.count()
    running: list[tuple[int, int]] = []  # number, ticket
    for step in steps:
        match step:
            case ("wait", float(seconds)):
                clock.now += seconds
            case ("start",):
                ticket = breaker.admit()
                assert (ticket is not None) is model.admits(clock.now)
                if ticket is not None:
                    running.append((next(numbers), ticket))
                    model.events.append(("start", clock.now, running[-1][0], None))
            case ("end", int(index), outcome) if running:
                number, ticket = running.pop(index % len(running))
                was_open, counts = bool(model.state()[0]), number in model.state()[2]
                model.events.append(("end", clock.now, number, outcome))
                is_open = bool(model.state()[0])
                if outcome is None:
                    breaker.abandon(ticket)
                elif outcome:
                    assert breaker.succeed(ticket) is (was_open and counts)
                else:
                    assert breaker.fail(ticket) == (FIRST_WAIT if is_open and not was_open else None)
        assert breaker.is_open is bool(model.state()[0])


def test_waits_double_up_to_a_minute_and_start_anew_after_a_success() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock)
    for _ in range(2):
        for _ in range(3):
            ticket = breaker.admit()
            assert ticket is not None
            breaker.fail(ticket)
        for wait in (1, 2, 4, 8, 16, 32, 60, 60, 60):
            clock.now += wait - 0.001
            assert breaker.admit() is None
            clock.now += 0.001
            ticket = breaker.admit()
            assert ticket is not None and breaker.admit() is None
            breaker.fail(ticket)
        clock.now += 60
        ticket = breaker.admit()
        assert ticket is not None and breaker.succeed(ticket)


def test_calls_that_were_admitted_before_do_not_count() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock)
    tickets = [ticket for _ in range(9) if (ticket := breaker.admit()) is not None]
    assert len(tickets) == 9
    for ticket in tickets[:3]:
        breaker.fail(ticket)
    assert not breaker.succeed(tickets[3]) and breaker.is_open  # it had begun before the failures
    breaker.fail(tickets[4])
    clock.now += 1
    probe = breaker.admit()
    assert probe is not None
    breaker.abandon(tickets[5])
    assert breaker.admit() is None  # the probe still runs
    assert breaker.succeed(probe)
    for ticket in tickets[6:]:
        breaker.fail(ticket)
    assert not breaker.is_open


def test_one_of_many_threads_probes() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(clock)
    for ticket in [breaker.admit() for _ in range(3)]:
        assert ticket is not None
        breaker.fail(ticket)
    for _ in range(50):
        clock.now += 60
        start, tickets = threading.Barrier(8), []

        def ask(start: threading.Barrier = start, tickets: list[int | None] = tickets) -> None:
            start.wait()
            tickets.append(breaker.admit())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (probe,) = [ticket for ticket in tickets if ticket is not None]
        breaker.fail(probe)
