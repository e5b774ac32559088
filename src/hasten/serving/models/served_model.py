"""``ServedModel``: one loaded model as routes use it."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.entrypoints.async_llm import AsyncLLM


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    name: str  # as requests name it
    path: str  # as it was loaded: a folder, a GGUF file, a hub id or "demo"
    llm: AsyncLLM
    created: int  # Unix time at which it was first named to the server
    max_requests: int  # of the server's queue for it
