"""``SharedResults``: computes equal requests once (single flight), and stores their results.

The first of several equal requests starts a flight: one request of the engine. Later ones join it, get what it has given so far,
and then every further delta. A flight ends early only when its last subscriber has left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from hasten.caching.result_cache import ResultCache
from hasten.caching.stored_result import StoredResult
from hasten.core.errors import InvalidRequest
from hasten.core.output import CompletionOutput, Delta, RequestMetrics, RequestOutput
from hasten.core.request import Request, ResultTicket
from hasten.core.result import FinishReason
from hasten.engine.engine import Engine


class RequestEngine(Protocol):
    """What runs requests: an ``Engine``, or one with a result cache in front."""

    def add(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> list[Delta]: ...

    def step(self) -> list[Delta]: ...

    def idle_seconds(self) -> float: ...

    @property
    def has_unfinished_requests(self) -> bool: ...


@dataclass(slots=True, eq=False)
class _Flight:
    """One request of the engine, and the requests that get its deltas."""

    ticket: ResultTicket
    engine_id: str
    subscribers: dict[str, Request] = field(default_factory=dict)
    deltas: list[Delta] = field(default_factory=list)  # so far


class SharedResults:
    """Has the methods of ``Engine`` that run requests, and like an engine is used by one thread at a time."""

    def __init__(self, engine: Engine, cache: ResultCache) -> None:
        self._engine, self._cache = engine, cache
        self._numbers = itertools.count()
        self._flights: dict[bytes, _Flight] = {}  # by key
        self._flight_of: dict[str, _Flight] = {}  # by the id of a subscriber, or of the engine's request
        self._ready: list[Delta] = []  # deltas that need no step

    def add(self, request: Request) -> None:
        """Add a request, as ``Engine.add`` does. One that equals a running request joins it."""
        if request.request_id in self._flight_of:
            raise InvalidRequest("a request of this id is running", got=repr(request.request_id), remedy="Use another id")
        ticket = request.result_ticket
        if ticket is None:
            self._engine.add(request)
            return
        if (result := self._cache.completed_since(ticket)) is not None:
            self._ready += result.replay(request, self._engine.clock())
            return
        flight = self._flights.get(ticket.key)
        if flight is None:
            flight = _Flight(ticket, f"flight {next(self._numbers)}")
            self._engine.add(replace(request, request_id=flight.engine_id))
            self._flights[ticket.key] = self._flight_of[flight.engine_id] = flight
        else:
            self._cache.count_shared()
            self._ready += [replace(delta, request_id=request.request_id) for delta in flight.deltas]
        flight.subscribers[request.request_id] = request
        self._flight_of[request.request_id] = flight

    def abort(self, request_id: str) -> list[Delta]:
        """End a request, as ``Engine.abort`` does. Others that share its computation go on."""
        self._ready = [delta for delta in self._ready if delta.request_id != request_id]
        flight = self._flight_of.get(request_id)
        if flight is None:
            return self._engine.abort(request_id)
        if len(flight.subscribers) > 1:
            del self._flight_of[request_id]
            return _aborted(flight.subscribers.pop(request_id), flight.deltas, self._engine.clock())
        return self._share(self._engine.abort(flight.engine_id))

    def step(self) -> list[Delta]:
        """Run a step, as ``Engine.step`` does."""
        deltas = self._share(self._engine.step())  # first: an interrupt leaves what is ready
        ready, self._ready = self._ready, []
        return [*ready, *deltas]

    def idle_seconds(self) -> float:
        return 0.0 if self._ready else self._engine.idle_seconds()

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._ready) or self._engine.has_unfinished_requests

    def _share(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Return the deltas of the engine for their subscribers; store a complete result."""
        shared: list[Delta] = []
        for delta in deltas:
            flight = self._flight_of.get(delta.request_id)
            if flight is None:
                shared.append(delta)
                continue
            flight.deltas.append(delta)
            shared += [_readdressed(delta, subscriber) for subscriber in flight.subscribers.values()]
            if delta.output is not None:
                self._land(flight)
        return shared

    def _land(self, flight: _Flight) -> None:
        del self._flights[flight.ticket.key]
        for request_id in (flight.engine_id, *flight.subscribers):
            del self._flight_of[request_id]
        if (result := StoredResult.of(flight.deltas)) is not None:
            self._cache.add(flight.ticket.key, result)


def _readdressed(delta: Delta, request: Request) -> Delta:
    """Return the delta as one of this request."""
    output = delta.output
    if output is not None:
        metrics = _metrics_since(output.metrics, request.arrival)
        output = replace(output, request_id=request.request_id, seed=request.params.seed, metrics=metrics)
    return replace(delta, request_id=request.request_id, output=output)


def _metrics_since(metrics: RequestMetrics, arrival: float) -> RequestMetrics:
    """Return the metrics of a request that arrived then: what came earlier, it got at once."""
    scheduled, first = (None if time is None else max(time, arrival) for time in (metrics.first_scheduled, metrics.first_token))
    return replace(metrics, arrival=arrival, first_scheduled=scheduled, first_token=first)


def _aborted(request: Request, deltas: Sequence[Delta], now: float) -> list[Delta]:
    """Return the last deltas of a request that leaves a flight which goes on.

    There is one per answer that has not ended.
    """
    outputs = [_partial(index, [delta for delta in deltas if delta.index == index]) for index in range(request.params.n)]
    output = RequestOutput(
        request_id=request.request_id,
        prompt=None,
        prompt_token_ids=request.prompt_token_ids,
        outputs=tuple(outputs),
        finished=True,
        seed=request.params.seed,
        metrics=RequestMetrics(
            arrival=request.arrival,
            finished=now,
            num_prompt_tokens=request.num_initial_tokens,
            num_output_tokens=sum(len(completion.token_ids) for completion in outputs),
        ),
    )
    last = [
        Delta(request_id=request.request_id, index=each.index, text="", token_ids=(), finish_reason=FinishReason.ABORT)
        for each in outputs
        if each.finish_reason is FinishReason.ABORT
    ]
    return [*last[:-1], replace(last[-1], output=output)]


def _partial(index: int, deltas: Sequence[Delta]) -> CompletionOutput:
    """Return one answer as far as it has come."""
    logprobs = tuple(token for delta in deltas for token in delta.logprobs or ())
    return CompletionOutput(
        index=index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        cumulative_logprob=sum(token.logprob for token in logprobs) if logprobs else None,
        logprobs=logprobs or None,
        finish_reason=(deltas[-1].finish_reason if deltas else None) or FinishReason.ABORT,
        stop_reason=deltas[-1].stop_reason if deltas else None,
        origins=tuple(origin for delta in deltas for origin in delta.origins),
    )
