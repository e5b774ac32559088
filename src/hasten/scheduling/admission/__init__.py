"""When waiting requests may join the running ones: one policy a file, registered under the file's name."""

from __future__ import annotations

from hasten.core.errors import InvalidOption, nearest
from hasten.scheduling.admission.base import Admission
from hasten.scheduling.admission.continuous import Continuous
from hasten.scheduling.admission.dynamic import Dynamic
from hasten.scheduling.admission.static import Static
from hasten.scheduling.config import SchedulerConfig

POLICIES: dict[str, type[Admission]] = {"continuous": Continuous, "dynamic": Dynamic, "static": Static}


def admission(config: SchedulerConfig) -> Admission:
    """The policy that ``config.batching`` names."""
    if config.batching not in POLICIES:
        raise InvalidOption("unknown batching", got=repr(config.batching), remedy=nearest(config.batching, POLICIES))
    return POLICIES[config.batching](config)
