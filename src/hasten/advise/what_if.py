"""``Settings``: what a model is asked to do; ``changed``: the settings after a short change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from hasten.advise.explanation import Explanation, Speculation, explain
from hasten.advise.known_machines import known_machine, machine_names
from hasten.advise.machine import MachineLimits
from hasten.advise.memory import EngineSizes
from hasten.advise.model_shape import ModelShape, Precision, read_shape
from hasten.advise.storage import QUANTIZED_BITS
from hasten.advise.work import Lengths
from hasten.core.errors import InvalidOption, nearest, show
from hasten.models.load import DTYPES

NUMBERS = ("batch", "prompt", "output", "speculation")
MAX_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    precision: Precision = dataclasses.field(default_factory=Precision)
    lengths: Lengths = dataclasses.field(default_factory=Lengths)
    cache: bool = True
    speculation: Speculation | None = None
    acceptance: float = 0.7  # of draft tokens that a change adds
    machine: str | None = None  # a name of the table; None: the machine of the caller


def change_names() -> tuple[str, ...]:
    """Return how a change is written; that of a number ends in "="."""
    return (*DTYPES, *QUANTIZED_BITS, "kv-int8", "kv-auto", "no-cache", *(f"{name}=" for name in NUMBERS), *machine_names())


def changed(settings: Settings, text: str) -> Settings:
    """Return the settings with changes such as ``int4``, ``kv-int8``, ``batch=8`` or ``int4+batch=8``.

    Raises ``InvalidOption`` with the nearest spelling.
    """
    for part in text.split("+"):
        settings = _changed_once(settings, part)
    return settings


def explain_settings(
    model: str,
    settings: Settings,
    machine_of: Callable[[ModelShape], MachineLimits],
    *,
    is_here: bool,
    sizes: EngineSizes | None = None,
    kv_memory: int | None = None,
) -> Explanation:
    """Return the explanation of the settings. ``machine_of``: the caller's machine, which is here or not."""
    sizes = sizes or EngineSizes()
    is_here = is_here and settings.machine is None
    shape = read_shape(model, settings.precision, is_here=is_here, block_size=sizes.block_size)
    machine = machine_of(shape) if settings.machine is None else known_machine(settings.machine)
    return explain(
        shape,
        settings.lengths,
        machine,
        cache=settings.cache,
        speculation=settings.speculation,
        sizes=sizes,
        kv_memory=kv_memory,
    )


def _changed_once(settings: Settings, text: str) -> Settings:
    name, equals, value = text.partition("=")
    if equals and name in NUMBERS:
        return _with_number(settings, name, value, text)
    if text in DTYPES:
        return dataclasses.replace(settings, precision=dataclasses.replace(settings.precision, dtype=text, quantization=None))
    if text in QUANTIZED_BITS:
        return dataclasses.replace(settings, precision=dataclasses.replace(settings.precision, quantization=text))
    if text in ("kv-int8", "kv-auto"):
        precision = dataclasses.replace(settings.precision, kv_cache_dtype=text.removeprefix("kv-"))
        return dataclasses.replace(settings, precision=precision)
    if text == "no-cache":
        return dataclasses.replace(settings, cache=False)
    if text in machine_names():
        return dataclasses.replace(settings, machine=text)
    raise InvalidOption("this change is not known", got=show(text), remedy=nearest(text, change_names()))


def _with_number(settings: Settings, name: str, value: str, text: str) -> Settings:
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
        raise InvalidOption(f"{name} is not a number", got=show(text), allowed=f"such as {name}=8")
    if name == "speculation":
        return dataclasses.replace(settings, speculation=Speculation(tokens=int(value), acceptance=settings.acceptance))
    return dataclasses.replace(settings, lengths=dataclasses.replace(settings.lengths, **{name: int(value)}))
