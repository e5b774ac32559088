"""``greeting``: what a server says at its start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hasten.core.version import __version__
from hasten.serving.listener import url_of
from hasten.serving.models.model_config import ModelConfig
from hasten.serving.server_options import ServerOptions


def greeting(models: Sequence[ModelConfig], options: ServerOptions, address: tuple[Any, ...]) -> Iterator[str]:
    """Yield lines: the address, the models, what is protected, and the limits. They name no key."""
    yield f"hasten {__version__} serves {url_of(address)}"
    first, *others = [model.name if model.name == model.path else f"{model.name} ({model.path})" for model in models]
    yield f"models: {', '.join([f'{first} loads now', *(f'{other} on demand' for other in others)])}"
    yield f"protection: {_protection(options)}"
    per_request = f"{options.max_n} answers, {options.max_prompts} prompts, {options.max_body_bytes:,} bytes"
    yield f"limits: a request has up to {per_request} and {options.request_timeout:g} s; {_requests(models, options)}"


def _protection(options: ServerOptions) -> str:
    if (count := len(options.api_keys)) > 0:
        return f"{count} API key{'s' if count > 1 else ''}, on every route but the probes"
    if options.insecure:
        return "none: every machine that reaches the server may use it (--insecure)"
    return "no API key; only this machine reaches the server"


def _requests(models: Sequence[ModelConfig], options: ServerOptions) -> str:
    limits = {model.max_requests(options.max_requests) for model in models}
    number = f"{min(limits):,}" if len(limits) == 1 else f"{min(limits):,} to {max(limits):,}"
    return f"{number} requests per model run or wait, up to {options.max_queue_seconds:g} s"
