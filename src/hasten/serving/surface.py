"""``Surface``: one API as the server mounts it: its routes, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter

from hasten.serving.api_error import ApiError


class ErrorWriter(Protocol):
    def __call__(self, error: ApiError, request_id: str) -> Mapping[str, Any]:
        """Return the body of an error, as this API's clients read it."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    name: str  # "openai", "anthropic", "tgi" or "native"
    router: APIRouter
    prefixes: tuple[str, ...]  # paths whose errors it writes: those that begin with one of them
    write_error: ErrorWriter
    request_id_header: str = "x-request-id"
    status_of: Mapping[int, int] | None = None  # statuses of this API that differ from those of ``ErrorKind``
    status_of_code: Mapping[str, int] | None = None  # the same by ``ApiError.code``, which goes first
    paths: frozenset[str] = frozenset()  # single paths whose errors it writes, beside ``prefixes``

    def owns(self, path: str) -> bool:
        """Return whether this surface writes the errors of a path."""
        return path in self.paths or path.startswith(self.prefixes)
