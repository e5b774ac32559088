"""``bounded_wait``: the time that a request may wait for its first step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from hasten.core.errors import HastenError
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.models.served_model import ServedModel
from hasten.serving.safety.admission import Admission, Place
from hasten.serving.safety.exchange import has_started
from hasten.serving.server_state import state_of


@asynccontextmanager
async def bounded_wait(request: Request, served: ServedModel, place: Place) -> AsyncIterator[None]:
    """Cancel what runs in the context if its request waits longer than ``max_queue_seconds``.

    It raises ``ApiError`` (RATE_LIMIT) then. Nothing polls: the engine is asked once, when the time is over, how many requests
    wait.
    """
    state = state_of(request)
    seconds = state.options.max_queue_seconds
    is_open = True
    asking: asyncio.Task[bool] | None = None
    try:
        async with asyncio.timeout(None) as patience:

            def give_up(task: asyncio.Task[bool]) -> None:
                if is_open and not task.cancelled() and task.exception() is None and task.result():
                    patience.reschedule(0)  # at once

            def ask() -> None:
                nonlocal asking
                if not has_started(request.scope):
                    asking = asyncio.ensure_future(_is_waiting(served, state.admission, place))
                    asking.add_done_callback(give_up)

            timer = asyncio.get_running_loop().call_later(seconds, ask)
            try:
                yield
            finally:
                is_open = False
                timer.cancel()
                if asking is not None:
                    asking.cancel()
    except TimeoutError:
        if not patience.expired():
            raise
        state.admission.count_rejection()
        message = f"the request waited {seconds:g} seconds for {served.name!r} to begin with it; the server has too much to do"
        retry_after = state.admission.retry_after(served.name)
        raise ApiError(ErrorKind.RATE_LIMIT, message, code="queue_timeout", retry_after=retry_after) from None


async def _is_waiting(served: ServedModel, admission: Admission, place: Place) -> bool:
    """Return whether a request waits for its first step.

    The engine begins with requests in the order of their arrival. So those that wait came last, and one is among them if fewer
    came after it than wait. With priorities or several prompts per request this is an estimate.
    """
    try:
        num_waiting = int((await served.llm.stats())["requests"]["waiting"])
    except HastenError:  # the engine has ended, and so does the request
        return False
    return admission.num_younger(served.name, place) < num_waiting
