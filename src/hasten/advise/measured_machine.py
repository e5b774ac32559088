"""``measured_machine``: this machine's limits, measured once and kept in hasten's cache folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.advise.machine import KernelRate, MachineLimits
from hasten.advise.measured_kernels import ROWS, StepRates, arithmetic_options, measure_products, measure_steps
from hasten.bench.machine import this_machine
from hasten.checkpoints.new_file import new_file
from hasten.core.cache_folder import cache_folder
from hasten.core.errors import HastenError
from hasten.core.version import __version__
from hasten.ops.cpu.memory import available_bytes
from hasten.runners.backends.choose import choose_backend

VERSION = 1  # of the file
MAX_FILE_BYTES = 1 << 20
_STEP = ("attention", "attention_bandwidth", "layer_overhead", "step_overhead")


def measured_machine(
    arithmetics: Sequence[str], *, kv_cache_dtype: str = "auto", threads: int | None = None, fresh: bool = False
) -> MachineLimits:
    """Return this machine's limits for products in these arithmetics.

    They are dtypes, and quantizations of the engine. ``fresh`` measures again what the cache holds. Raises ``InvalidOption`` if no
    kernel computes an arithmetic.
    """
    options, dtype = arithmetic_options(arithmetics[0], kv_cache_dtype, threads)
    backend = choose_backend(options)
    machine = this_machine()
    identity = [machine.cpu, machine.cores, backend.kernels, threads, kv_cache_dtype, __version__, VERSION, dtype.itemsize]
    file = cache_folder() / f"limits-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"
    stored = {} if fresh else _read(file)
    rates: dict[str, tuple[KernelRate, float]] = {name: _rate(stored[name]) for name in stored if name != "step"}
    missing = [name for name in dict.fromkeys(arithmetics) if name not in rates]
    for name in missing:
        own, own_dtype = arithmetic_options(name, kv_cache_dtype, threads)
        rates[name] = measure_products(choose_backend(own), own_dtype)
    steps = StepRates(**stored["step"]) if "step" in stored else measure_steps(backend, dtype, threads)
    if missing or "step" not in stored:
        _write(file, rates, steps)
    return MachineLimits(
        name=machine.cpu,
        bandwidth=max(bandwidth for _, bandwidth in rates.values()),
        rates={name: rate for name, (rate, _) in rates.items()},
        attention=steps.attention,
        attention_bandwidth=steps.attention_bandwidth,
        layer_overhead=steps.layer_overhead,
        step_overhead=steps.step_overhead,
        memory=available_bytes(),
        is_measured=True,
    )


def _rate(stored: Mapping[str, Any]) -> tuple[KernelRate, float]:
    return KernelRate(tuple(zip(ROWS, stored["flops"], strict=True))), stored["bandwidth"]


def _write(file: Path, rates: Mapping[str, tuple[KernelRate, float]], steps: StepRates) -> None:
    """Keep the limits; a folder that cannot be written only means that they are measured again."""
    content: dict[str, Any] = {
        name: {"flops": [flops for _, flops in rate.points], "bandwidth": bandwidth} for name, (rate, bandwidth) in rates.items()
    }
    content["step"] = {name: getattr(steps, name) for name in _STEP}
    data = json.dumps(content).encode()
    try:
        with new_file(file, len(data)) as out:
            out.write(data)
    except HastenError:
        return


def _read(file: Path) -> dict[str, Any]:
    """Return what the file holds, without what is not as ``_write`` writes it."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_FILE_BYTES:
            return {}
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if (_is_step if name == "step" else _is_rate)(value)}


def _is_step(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != set(_STEP) or not all(_is_number(number) for number in value.values()):
        return False
    return bool(value["attention"] > 0 and value["attention_bandwidth"] > 0)


def _is_rate(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"flops", "bandwidth"} or not isinstance(value["flops"], list):
        return False
    numbers = [*value["flops"], value["bandwidth"]]
    return len(value["flops"]) == len(ROWS) and all(_is_number(number) and number > 0 for number in numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
