"""``ModelSnapshot``: what one engine answered to a scrape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import HastenError
from hasten.serving.models.served_model import ServedModel

log = logging.getLogger(__name__)

MAX_WAIT = 2.0  # seconds; an engine answers between two of its steps


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    name: str
    description: Mapping[str, Any]  # see ``LLM.describe``
    stats: Mapping[str, Any] | None  # see ``LLM.stats``; None: the engine has not answered


async def take_snapshot(model: ServedModel) -> ModelSnapshot:
    """Return the statistics of a model, without them if it does not answer in time."""
    stats = None
    try:
        async with asyncio.timeout(MAX_WAIT):
            stats = await model.llm.stats()
    except (HastenError, TimeoutError):  # it has ended, or is held up
        log.warning("the engine of %r has not answered a scrape", model.name)
    return ModelSnapshot(model.name, model.llm.describe(), stats)
