"""``Call``: one request of an API while it is served: its model, its tenant, its place in the queue."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.caller import Caller, caller_of
from hasten.serving.metrics.usage import Usage, usage_of
from hasten.serving.models.served_model import ServedModel
from hasten.serving.queue_wait import bounded_wait
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import state_of


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    id: str  # made by the server; a client's own ids are never keys
    model: ServedModel
    caller: Caller
    options: ServerOptions
    usage: Usage  # what the access log says about the request

    @property
    def llm(self) -> AsyncLLM:
        return self.model.llm


@asynccontextmanager
async def open_call(request: Request, model: str | None, *, num_sequences: int = 1) -> AsyncIterator[Call]:
    """Hold a model and a place in its queue for the time of a request.

    ``num_sequences``: prompts times answers. Raises ``ApiError`` before anything is tokenised if the model is not known, cannot be
    loaded, or has a full queue; and later (RATE_LIMIT) if the request waits too long for its first step.
    """
    state, caller = state_of(request), caller_of(request)
    async with state.models.use(model) as served:
        usage_of(request.scope).model = served.name
        with state.admission.place(served.name, served.max_requests, num_sequences, caller.tenant) as place:
            async with bounded_wait(request, served, place):
                yield Call(secrets.token_hex(12), served, caller, state.options, usage_of(request.scope))
