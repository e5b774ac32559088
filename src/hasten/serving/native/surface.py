"""``native_surface``: hasten's own routes as the server mounts them."""

from __future__ import annotations

from fastapi import APIRouter

from hasten.serving.native import caches, pins, probes, scoring, templates, tokenization
from hasten.serving.native.error_response import ERRORS
from hasten.serving.openai.errors import write_error
from hasten.serving.surface import Surface

PREFIXES = (
    *(
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/score",
        "/v1/score",
        "/choose",
        "/v1/choose",
        "/cache",
        "/reset_prefix_cache",
    ),
    *("/reset_prefix_cache", "/reset_result_cache", "/pin_kv", "/unpin_kv", "/v1/templates"),
    *probes.PROBE_PATHS,
)


def native_surface() -> Surface:
    """Return tokenize, detokenize, score, choose, the caches, pins, prompt templates and probes.

    Errors have OpenAI's form.
    """
    router = APIRouter(tags=["hasten"], responses=ERRORS)
    for each in (tokenization, scoring, caches, pins, templates, probes):
        router.include_router(each.router)
    return Surface("native", router, PREFIXES, write_error)
