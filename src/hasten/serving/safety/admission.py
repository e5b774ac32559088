"""``Admission``: the bound on requests that run or wait, one for each model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hasten.serving.api_error import ApiError, ErrorKind


class Admission:
    """A request has its place from before its text is tokenised until its last byte is sent."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # per model, sequences
        self.num_rejected = 0

    @contextmanager
    def place(self, model: str, limit: int, num_sequences: int = 1) -> Iterator[None]:
        """Hold a place for each sequence of a request. Raises ``ApiError`` (RATE_LIMIT) if fewer are free."""
        taken = self._taken.get(model, 0)
        if taken + num_sequences > limit:
            self.num_rejected += 1
            message = f"the queue of {model!r} is full: {taken} of {limit} places are taken and the request needs {num_sequences}"
            raise ApiError(ErrorKind.RATE_LIMIT, message, code="queue_full", retry_after=1.0)
        self._taken[model] = taken + num_sequences
        try:
            yield
        finally:
            self._taken[model] -= num_sequences
