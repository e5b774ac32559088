"""``SingleModel``: a registry of one model that is loaded and stays so, for tests and small programs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hasten.core.errors import show
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.models.base import ModelEntry
from hasten.serving.models.health import Health
from hasten.serving.models.served_model import ServedModel


class SingleModel:
    def __init__(self, name: str, llm: AsyncLLM, *, path: str = "", max_requests: int = 256) -> None:
        self._model = ServedModel(name, path or name, llm, int(time.time()), max_requests)

    def entries(self) -> Sequence[ModelEntry]:
        model = self._model
        max_model_len = model.llm.max_model_len
        return [ModelEntry(model.name, model.path, model.created, is_loaded=True, max_model_len=max_model_len)]

    def loaded(self) -> Sequence[ServedModel]:
        return [self._model]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        if name not in (None, self._model.name):
            raise unknown_model(name, [self._model.name])
        yield self._model

    def health(self) -> Health:
        return Health()


def unknown_model(name: str | None, known: Sequence[str]) -> ApiError:
    message = f"the model {show(name)} does not exist on this server; it has {', '.join(map(repr, known))}"
    return ApiError(ErrorKind.NOT_FOUND, message, param="model", code="model_not_found")
