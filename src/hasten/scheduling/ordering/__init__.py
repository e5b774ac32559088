"""Who goes first: one ordering a file, registered under the file's name."""

from __future__ import annotations

from hasten.core.errors import InvalidOption, nearest
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.ordering.base import Ordering
from hasten.scheduling.ordering.fcfs import Fcfs
from hasten.scheduling.ordering.priority import Priority

ORDERINGS: dict[str, type[Ordering]] = {"fcfs": Fcfs, "priority": Priority}


def ordering(config: SchedulerConfig) -> Ordering:
    """The ordering that ``config.ordering`` names."""
    if config.ordering not in ORDERINGS:
        raise InvalidOption("unknown ordering", got=repr(config.ordering), remedy=nearest(config.ordering, ORDERINGS))
    return ORDERINGS[config.ordering](config)
