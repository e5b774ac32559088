"""``load_engine``: the engine of a model, in a process of its own."""

from __future__ import annotations

import asyncio

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.models.model_config import ModelConfig


async def load_engine(config: ModelConfig) -> AsyncLLM:
    """Return the engine, which its process loads beside the event loop.

    Raises ``HastenError`` if it cannot be loaded.
    """
    return await asyncio.to_thread(AsyncLLM, config.path, transport="process", **config.options)
