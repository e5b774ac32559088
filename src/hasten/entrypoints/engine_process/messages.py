"""The kinds of messages between a caller and the process of its engine, and their types."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from hasten.core import errors
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError
from hasten.core.output import Delta, RequestRejected
from hasten.core.request import Request
from hasten.entrypoints.engine_calls import CALLS
from hasten.entrypoints.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """The first message: which model to load, and how."""

    model: str
    options: EngineOptions


@dataclass(frozen=True, slots=True)
class CallMessage:
    number: int
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResultMessage:
    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """An exception as plain data. ``kind``: its class in ``hasten.core.errors``, or another."""

    kind: str
    what: str
    got: str | None = None
    allowed: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> ErrorFacts:
        if isinstance(error, HastenError):
            return cls(type(error).__name__, error.what, error.got, error.allowed, error.remedy)
        return cls(type(error).__name__, str(error))

    def as_exception(self) -> Exception:
        if self.kind == CancelledError.__name__:
            return CancelledError()
        known = getattr(errors, self.kind, None)
        if isinstance(known, type) and issubclass(known, HastenError):
            return known(self.what, got=self.got, allowed=self.allowed, remedy=self.remedy)
        return HastenError("the engine failed on a call", got=f"{self.kind}: {self.what}", remedy="Its process's log says why")


@dataclass(frozen=True, slots=True)
class FailedCall:
    number: int
    error: ErrorFacts


TO_ENGINE: dict[str, TypeAdapter[Any]] = {
    "open": TypeAdapter(OpenEngine),
    "add": TypeAdapter(Request),
    "abort": TypeAdapter(str),
    "call": TypeAdapter(CallMessage),
    "cancel": TypeAdapter(int),
}
FROM_ENGINE: dict[str, TypeAdapter[Any]] = {
    "opened": TypeAdapter(ModelInfo),
    "failed": TypeAdapter(ErrorFacts),
    "deltas": TypeAdapter(list[Delta]),
    "rejected": TypeAdapter(RequestRejected),
    "died": TypeAdapter(str),
    "result": TypeAdapter(ResultMessage),
    "error": TypeAdapter(FailedCall),
}


class CallTypes:
    """The types of the arguments and the result of a call, from its annotations."""

    def __init__(self, name: str) -> None:
        hints = get_type_hints(CALLS[name])
        parameters = list(inspect.signature(CALLS[name]).parameters)[1:]  # without ``access``
        self.arguments = {parameter: TypeAdapter(hints[parameter]) for parameter in parameters}
        self.result: TypeAdapter[Any] = TypeAdapter(hints["return"])

    def write_arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: adapter.dump_python(values[name]) for name, adapter in self.arguments.items()}

    def read_arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: adapter.validate_python(values[name]) for name, adapter in self.arguments.items()}


CALL_TYPES = {name: CallTypes(name) for name in CALLS}
