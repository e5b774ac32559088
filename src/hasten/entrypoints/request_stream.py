"""Requests on a shared engine: run to their end, or as a stream that other requests may join."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from hasten.caching.stored_result import StoredResult
from hasten.core.output import Delta, RequestOutput
from hasten.core.request import Request
from hasten.entrypoints.deferred_signals import DeferredSignals
from hasten.entrypoints.progress import generation_bar
from hasten.entrypoints.shared_engine import Inbox, SharedEngine
from hasten.entrypoints.wiring.build_engine import LoadedEngine


def stream_requests(loaded: LoadedEngine, shared: SharedEngine, pending: deque[Request]) -> Generator[Delta, None, None]:
    """Yield deltas until no request is open or pending. Closing the iterator ends all of them.

    Before each step the requests of ``pending`` leave it: those with a stored result are replayed, the others start. If one that
    comes later can never run, all end and ``InvalidRequest`` is raised.
    """
    inbox = Inbox(())
    try:
        while True:
            started: list[Request] = []
            while pending:
                request = pending.popleft()
                found = find_result(loaded, request)
                if isinstance(found, StoredResult):
                    yield from found.replay(request, loaded.engine.clock())
                else:
                    started.append(found)
            with DeferredSignals() as signals:
                if started:
                    inbox.requests = started
                    shared.open(inbox)
                if not inbox.unfinished and not inbox.deltas:
                    return
                deltas = shared.take(inbox, signals.check)
            yield from deltas
    finally:
        try:
            with DeferredSignals():
                shared.abandon(inbox.unfinished)
        finally:  # a signal may come before it can be deferred
            if inbox.unfinished:
                shared.abandon(inbox.unfinished)


def find_result(loaded: LoadedEngine, request: Request) -> StoredResult | Request:
    """Return the stored result of a request, or the request as the engine takes it."""
    if loaded.result_cache is None:
        return request
    with DeferredSignals():  # a handler that raises or closes the LLM must not find the locks of the cache held
        return loaded.find_result(request)


def complete_requests(
    loaded: LoadedEngine, shared: SharedEngine, requests: Sequence[Request], *, use_tqdm: bool
) -> dict[str, RequestOutput]:
    """Return the outputs of requests by id, from the result cache where it has them."""
    outputs: dict[str, RequestOutput] = {}
    missing: list[Request] = []
    for request in requests:
        found = find_result(loaded, request)
        if isinstance(found, StoredResult):
            outputs[request.request_id] = found.output(request, loaded.engine.clock())
        else:
            missing.append(found)
    if missing or not outputs:  # hits alone take no lock, which another thread's step may hold
        outputs |= run_requests(shared, missing, use_tqdm=use_tqdm)
    return outputs


def run_requests(shared: SharedEngine, requests: Sequence[Request], *, use_tqdm: bool) -> dict[str, RequestOutput]:
    """Run requests to their end, and return their outputs by id.

    An exception, such as Ctrl-C, ends all of them.
    """
    outputs: dict[str, RequestOutput] = {}
    with DeferredSignals() as signals:
        inbox = Inbox(requests)
        try:
            shared.open(inbox)
            with generation_bar(len(requests), visible=use_tqdm) as progress:
                while inbox.unfinished or inbox.deltas:
                    deltas = shared.take(inbox, signals.check)
                    finished = {delta.request_id: delta.output for delta in deltas if delta.output is not None}
                    outputs |= finished
                    progress(len(finished), sum(len(delta.token_ids) for delta in deltas))
        finally:
            shared.abandon(inbox.unfinished)
    return outputs
