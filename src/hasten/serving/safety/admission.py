"""``Admission``: the bound on requests that run or wait, one for each model."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hasten.serving.api_error import ApiError, ErrorKind, invalid

CONTENTION_SECONDS = 60.0  # after a refusal, in which no tenant gets more than its share
MAX_RETRY_SECONDS = 60.0
_NEW_WEIGHT = 0.1  # of the latest request in the mean time that a place is held


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The place of one request. ``number`` grows with each request of a server."""

    number: int
    tenant: str
    num_sequences: int
    since: float


@dataclass(slots=True, eq=False)
class _Queue:
    """The places of one model."""

    places: dict[int, Place] = field(default_factory=dict)  # by number, so in the order of their arrival
    num_taken: int = 0  # sequences
    taken_by: dict[str, int] = field(default_factory=dict)  # per tenant, sequences
    refused_at: dict[str, float] = field(default_factory=dict)  # tenants that found the queue full, in the last minute
    mean_seconds: float = 1.0  # that a place is held


class Admission:
    """A request has its place from before its text is tokenised until its last byte is sent.

    One tenant may take all places of a model while it is alone. Once a request finds the queue full, no tenant gets places beyond
    an equal share for a minute, so that places become free for those that have fewer. A tenant without a place may take as many
    as are free. Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._numbers = itertools.count()
        self.num_rejected = 0

    @contextmanager
    def place(self, model: str, limit: int, num_sequences: int = 1, tenant: str = "") -> Iterator[Place]:
        """Hold a place for each sequence of a request.

        Raises ``ApiError``: INVALID_REQUEST if the request needs more than there are, RATE_LIMIT if fewer are free.
        """
        place = self._take(model, limit, num_sequences, tenant)
        try:
            yield place
        finally:
            self._release(model, place)

    def num_taken(self, model: str) -> int:
        """Return the number of sequences that run or wait."""
        with self._lock:
            return self._queues[model].num_taken if model in self._queues else 0

    def num_younger(self, model: str, place: Place) -> int:
        """Return the number of requests that came after one and have not ended."""
        with self._lock:
            places = self._queues[model].places if model in self._queues else {}
            return sum(number > place.number for number in places)

    def count_rejection(self) -> None:
        """Count a request that is refused after it had a place."""
        with self._lock:
            self.num_rejected += 1

    def retry_after(self, model: str) -> float:
        """Return in how many seconds a place becomes free, judged by recent requests; at least one."""
        with self._lock:
            return _seconds_until_free(self._queues.get(model) or _Queue(), 1)

    def _take(self, model: str, limit: int, num_sequences: int, tenant: str) -> Place:
        if num_sequences > limit:
            needed = f"the request needs {num_sequences} places in the queue of {model!r}, one per prompt and answer"
            raise invalid(f"{needed}; it has {limit}", code="too_many_sequences")
        with self._lock:
            queue, now = self._queues.setdefault(model, _Queue()), self._clock()
            excess = queue.num_taken + num_sequences - limit
            if excess > 0:
                queue.refused_at[tenant] = now
                self._reject(f"the queue of {model!r} is full: {queue.num_taken} of {limit} places are taken", queue, excess)
            held = queue.taken_by.get(tenant, 0)
            share = _share(queue, tenant, limit, now)
            if held and held + num_sequences > share:
                message = f"the queue of {model!r} is contended: this key has {held} places, and its share is {share} of {limit}"
                self._reject(message, queue, held + num_sequences - share)
            place = Place(next(self._numbers), tenant, num_sequences, now)
            queue.places[place.number] = place
            queue.num_taken += num_sequences
            queue.taken_by[tenant] = held + num_sequences
            return place

    def _reject(self, message: str, queue: _Queue, num_needed: int) -> None:
        self.num_rejected += 1
        retry_after = _seconds_until_free(queue, num_needed)
        raise ApiError(ErrorKind.RATE_LIMIT, message, code="queue_full", retry_after=retry_after)

    def _release(self, model: str, place: Place) -> None:
        with self._lock:
            queue = self._queues[model]
            del queue.places[place.number]
            queue.num_taken -= place.num_sequences
            queue.taken_by[place.tenant] -= place.num_sequences
            if not queue.taken_by[place.tenant]:
                del queue.taken_by[place.tenant]
            queue.mean_seconds += _NEW_WEIGHT * (self._clock() - place.since - queue.mean_seconds)


def _share(queue: _Queue, tenant: str, limit: int, now: float) -> int:
    """Return the number of places that a tenant may have."""
    queue.refused_at = {each: since for each, since in queue.refused_at.items() if now - since < CONTENTION_SECONDS}
    if not queue.refused_at.keys() - {tenant}:  # no other tenant lacks a place
        return limit
    return max(1, limit // len(queue.taken_by.keys() | queue.refused_at.keys() | {tenant}))


def _seconds_until_free(queue: _Queue, num_needed: int) -> float:
    """Return the time until so many places are free.

    By Little's law one is freed each mean time divided by the number of places taken.
    """
    seconds = queue.mean_seconds * num_needed / max(1, queue.num_taken)
    return float(math.ceil(min(MAX_RETRY_SECONDS, max(1.0, seconds))))
