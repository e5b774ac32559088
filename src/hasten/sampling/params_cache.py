"""A cache of values that follow from the sampling settings of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from hasten.core.sampling_params import SamplingParams

T = TypeVar("T")
MAX_ENTRIES = 4096  # a full cache is emptied


class ParamsCache(Generic[T]):
    """Values by the identity of the settings: a request brings one immutable object in every step."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[SamplingParams, T]] = {}

    def get(self, params: SamplingParams, compute: Callable[[SamplingParams], T]) -> T:
        """Return the cached value, or compute and store it."""
        entry = self._entries.get(id(params))
        if entry is None:
            if len(self._entries) >= MAX_ENTRIES:
                self._entries.clear()
            # The entry keeps the settings alive, so that no other object gets their id.
            entry = self._entries[id(params)] = (params, compute(params))
        return entry[1]
