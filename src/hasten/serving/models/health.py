"""``Health``: whether the engines of a server answer."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class EngineStatus(enum.Enum):
    READY = "ready"
    LOADING = "loading"  # the first model, after the start
    RESTARTING = "restarting"  # an engine has died
    NOT_ANSWERING = "not_answering"  # an engine answers no ping


@dataclass(frozen=True, slots=True)
class Health:
    """``reason`` names no model and no path: probes need no key."""

    engines: EngineStatus = EngineStatus.READY
    reason: str = ""
    unanswered_seconds: float = 0.0  # of the engine that has been silent for the longest time
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        return self.engines is EngineStatus.READY and not self.is_draining
