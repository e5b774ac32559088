"""The bound on requests, against a list of all places, under any order of events and from several threads."""

import asyncio
import sys
import threading
from contextlib import AbstractContextManager, ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.safety import admission as admission_module
from hasten.serving.safety.admission import CONTENTION_SECONDS, Admission, Place

LIMITS = {"small": 4, "large": 12}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class AdmissionMachine(RuleBasedStateMachine):
    """The oracle: a list of (model, tenant, sequences), and when each tenant was last refused for lack of places."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.admission = Admission(self.clock)
        self.open: list[tuple[str, str, int, AbstractContextManager[Place], Place]] = []
        self.refused: dict[tuple[str, str], float] = {}
        self.num_rejected = 0

    def held(self, model: str, tenant: str | None = None) -> int:
        return sum(number for at, who, number, *_ in self.open if at == model and tenant in (None, who))

    def expected(self, model: str, tenant: str, number: int) -> ErrorKind | None:
        limit = LIMITS[model]
        if number > limit:
            return ErrorKind.INVALID_REQUEST
        if self.held(model) + number > limit:
            self.refused[model, tenant] = self.clock.now
            return ErrorKind.RATE_LIMIT
        waiting = {who for (at, who), since in self.refused.items() if at == model and self.clock.now - since < CONTENTION_SECONDS}
        active = waiting | {who for at, who, *_ in self.open if at == model} | {tenant}
        mine = self.held(model, tenant)
        if waiting - {tenant} and mine and mine + number > max(1, limit // len(active)):
            return ErrorKind.RATE_LIMIT
        return None

    @rule(model=st.sampled_from(sorted(LIMITS)), tenant=st.sampled_from("abc"), number=st.integers(1, 6))
    def take(self, model: str, tenant: str, number: int) -> None:
        expected = self.expected(model, tenant, number)
        context = self.admission.place(model, LIMITS[model], number, tenant)
        if expected is None:
            self.open.append((model, tenant, number, context, context.__enter__()))
            return
        with pytest.raises(ApiError) as caught:
            context.__enter__()
        assert caught.value.kind is expected
        if expected is ErrorKind.RATE_LIMIT:
            self.num_rejected += 1
            assert 1 <= caught.value.retry_after <= 60

    @rule(data=st.data(), how=st.sampled_from(["end", "error", "cancel", "generator exit"]))
    def release(self, data: st.DataObject, how: str) -> None:
        if not self.open:
            return
        *_, context, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        error = {"end": None, "error": ValueError(), "cancel": asyncio.CancelledError(), "generator exit": GeneratorExit()}[how]
        if error is None:
            context.__exit__(None, None, None)
        else:
            assert not context.__exit__(type(error), error, None)

    @rule(seconds=st.sampled_from([0.1, 5.0, 59.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts_are_those_of_the_list(self) -> None:
        for model in LIMITS:
            assert self.admission.num_taken(model) == self.held(model) <= LIMITS[model]
            places = [place for at, *_, place in self.open if at == model]
            for index, place in enumerate(places):
                assert self.admission.num_younger(model, place) == len(places) - index - 1
        assert self.admission.num_rejected == self.num_rejected

    def teardown(self) -> None:
        for *_, context, _ in self.open:
            context.__exit__(None, None, None)
        assert all(self.admission.num_taken(model) == 0 for model in LIMITS)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_place_that_is_not_released_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: cancelled requests keep their place."""

    class Faulty(Admission):
        def place(self, *args: object) -> AbstractContextManager[Place]:
            inner = super().place(*args)

            class Context:
                def __enter__(self) -> Place:
                    return inner.__enter__()

                def __exit__(self, kind: object, *error: object) -> bool:
                    return False if kind is asyncio.CancelledError else bool(inner.__exit__(kind, *error))

            return Context()

    monkeypatch.setitem(globals(), "Admission", Faulty)
    machine = AdmissionMachine()
    machine.take("large", "a", 2)
    *_, context, _ = machine.open.pop()
    context.__exit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    with pytest.raises(AssertionError):
        machine.counts_are_those_of_the_list()


def test_concurrent_requests_never_exceed_the_limit() -> None:
    """64 threads, as the bug of a check before the count needs them; the sum held at once is brute-forced."""
    admission, limit, lock = Admission(), 10, threading.Lock()
    held, most, taken = 0, 0, 0
    barrier = threading.Barrier(64)

    def run(seed: int) -> None:
        nonlocal held, most, taken
        barrier.wait(20)
        for step in range(60):
            number = 1 + (seed + step) % 3
            try:
                with admission.place("m", limit, number, str(seed % 4)):
                    with lock:
                        held, taken = held + number, taken + 1
                        most = max(most, held)
                    with lock:
                        held -= number
            except ApiError:
                pass

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(64)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns in the midst of everything
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert 0 < most <= limit and taken + admission.num_rejected == 64 * 60
    assert admission.num_taken("m") == 0


def test_a_place_is_taken_under_the_lock() -> None:
    """The clock is read between the check and the count."""
    held: list[bool] = []

    def clock() -> float:
        held.append(admission._lock.locked())
        return 1.0

    admission = Admission(clock)
    with admission.place("m", 1):
        pass
    assert held == [True, True]


def test_a_tenant_alone_may_take_all() -> None:
    with ExitStack() as stack:
        admission = Admission()
        for _ in range(10):
            stack.enter_context(admission.place("m", 10, 1, "a"))
        assert admission.num_taken("m") == 10


def test_a_refused_tenant_gets_its_share() -> None:
    """One floods the queue and asks again at once whenever a place is free; the other asks once a second."""
    clock = Clock()
    admission = Admission(clock)
    places: dict[str, list[AbstractContextManager[Place]]] = {"flood": [], "other": []}

    def ask(tenant: str) -> bool:
        context = admission.place("m", 8, 1, tenant)
        try:
            context.__enter__()
        except ApiError:
            return False
        places[tenant].append(context)
        return True

    while ask("flood"):
        pass
    assert len(places["flood"]) == 8 and not ask("other")
    for _ in range(20):
        clock.now += 1
        places["flood"].pop(0).__exit__(None, None, None)
        while ask("flood"):
            pass
        ask("other")
        if len(places["other"]) > 4:
            places["other"].pop(0).__exit__(None, None, None)
        if len(places["flood"]) == 0:
            break
    assert len(places["other"]) >= 4 and len(places["flood"]) <= 4
    clock.now += CONTENTION_SECONDS + 1
    for context in places["other"]:
        context.__exit__(None, None, None)
    while ask("flood"):
        pass
    assert len(places["flood"]) == 8  # alone again


def test_fairness_is_what_gives_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "_share", lambda queue, tenant, limit, now: limit)
    with pytest.raises(AssertionError):
        test_a_refused_tenant_gets_its_share()


@pytest.mark.parametrize(
    ("seconds", "needed", "expected"), [(0.1, 1, 1), (40.0, 1, 4), (40.0, 5, 20), (40.0, 10, 40), (10_000.0, 10, 60)]
)
def test_retry_after_follows_recent_times(seconds: float, needed: int, expected: float) -> None:
    """Ten places that are held for 40 s each: one is free every 4 s."""
    clock = Clock()
    admission = Admission(clock)
    for _ in range(100):
        with admission.place("m", 10):
            clock.now += seconds
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(admission.place("m", 10))
        with pytest.raises(ApiError, match="the queue of 'm' is full: 10 of 10 places are taken") as caught:
            stack.enter_context(admission.place("m", 10, needed))
    assert caught.value.retry_after == expected and caught.value.code == "queue_full" and caught.value.status == 429


def test_a_request_that_never_fits_is_an_error_of_its_own() -> None:
    with pytest.raises(ApiError, match="needs 11 places in the queue of 'm', one per prompt and answer; it has 10") as caught:
        Admission().place("m", 10, 11).__enter__()
    assert caught.value.status == 400 and caught.value.retry_after is None
