"""Arguments of a batch: a list of prompts, and one value for all of them or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt


def list_prompts(prompts: object) -> list[Any]:
    """Return the prompts as a list; a single one makes a list of one. Raises ``InvalidRequest``."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        allowed = 'a text, {"prompt_token_ids": [...]}, or a list of them'
        raise InvalidRequest("prompts have the wrong type", got=type(prompts).__name__, allowed=allowed)
    return list(prompts)


def per_prompt(values: Any, num_prompts: int, name: str) -> list[Any]:
    """Return one value per prompt, from one value for all of them or one for each.

    Raises ``InvalidRequest`` for another number of values.
    """
    if values is None or isinstance(values, (SamplingParams, SoftPrompt)):
        return [values] * num_prompts
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InvalidRequest(f"{name} has the wrong type", got=type(values).__name__, allowed="one value, or one per prompt")
    if len(values) != num_prompts:
        raise InvalidRequest(f"{name} and prompts differ in number", got=len(values), allowed=f"{num_prompts}, one per prompt")
    return list(values)
