"""Who goes first: one ordering a file, registered under the file's name."""

from __future__ import annotations

from hasten.core.errors import InvalidOption, nearest
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.policies.base import SchedulingPolicy
from hasten.scheduling.policies.fcfs import Fcfs
from hasten.scheduling.policies.priority import Priority

SCHEDULING_POLICIES: dict[str, type[SchedulingPolicy]] = {"fcfs": Fcfs, "priority": Priority}


def scheduling_policy(config: SchedulerConfig) -> SchedulingPolicy:
    """The ordering that ``config.scheduling_policy`` names."""
    if config.scheduling_policy not in SCHEDULING_POLICIES:
        raise InvalidOption(
            "unknown scheduling_policy",
            got=repr(config.scheduling_policy),
            remedy=nearest(config.scheduling_policy, SCHEDULING_POLICIES),
        )
    return SCHEDULING_POLICIES[config.scheduling_policy](config)
