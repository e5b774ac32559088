"""``speculative_config``: the drafter of an engine as vLLM's ``--speculative-config`` names it."""

from __future__ import annotations

from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.serving.handover.checkpoint_facts import absolute_path

# Drafter -> vLLM's method.
METHODS = {"prompt_lookup": "ngram", "suffix": "suffix", "draft_model": "draft_model", "eagle": "eagle3", "medusa": "medusa"}
NUM_DRAFT_TOKENS = 4  # for methods that vLLM gives no number of their own
_NEED_NUMBER = ("ngram", "draft_model")


def speculative_config(options: EngineOptions) -> dict[str, Any] | None:
    """Return the values of vLLM's ``SpeculativeConfig``; None where vLLM runs without speculation.

    Speculation changes no output in either engine, so a drafter that vLLM lacks is left out.
    """
    weights = options.draft_model or options.draft_heads
    method = METHODS.get(options.resolved_speculative_method)
    if method is None and (weights is None or options.resolved_speculative_method != "auto"):
        return None
    config: dict[str, Any] = {}
    if options.draft_model is not None:
        method = "draft_model"
    if method is not None:  # vLLM itself tells EAGLE from Medusa heads
        config["method"] = method
    if weights is not None:
        config["model"] = absolute_path(weights)
    if options.num_speculative_tokens is not None or method in _NEED_NUMBER:
        config["num_speculative_tokens"] = options.num_speculative_tokens or NUM_DRAFT_TOKENS
    return config
