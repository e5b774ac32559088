"""``hasten doctor``: what hardware is here, which kernels would run on it and why, and where models come from."""

from __future__ import annotations

import dataclasses
import json as encoder
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten.cli.engine_options import Debug, Json

if TYPE_CHECKING:
    from hasten.ops.cpu.cpu import Cpu


def doctor(json: Json = False, debug: Debug = False) -> None:
    """Report the hardware, the kernels that would run on it and why, the versions, and where models are kept."""
    report = examine()
    print(encoder.dumps(report) if json else "\n".join(_lines(report)))


def examine() -> dict[str, Any]:
    import torch

    from hasten.bench.machine import this_machine
    from hasten.bench.versions import commit, versions
    from hasten.checkpoints import hub
    from hasten.ops.choose import choose_ops

    machine = this_machine()
    from hasten.ops.cpu.cpu import find_cpu

    ops, reason = choose_ops("cpu")
    native = find_cpu()
    cached = hub.cached_models()
    return {
        "hardware": {**dataclasses.asdict(machine), "cores": machine.cores},
        "cuda": [_device(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "kernels": {
            "device": "cpu",
            "backend": ops.name if isinstance(native, str) else "native",
            "why": f"{native}; {reason}" if isinstance(native, str) else _native(native),
            "threads": torch.get_num_threads() if isinstance(native, str) else native.threads,
        },
        "versions": {**versions(), "commit": commit()},
        "models": {
            "shipped": [name for name, folder in hub.SHIPPED.items() if folder.is_dir()],
            "cache": str(hub.cache_folder()),
            "cached": len(cached),
            "cached_bytes": sum(model.size for model in cached),
            "offline": hub.offline(),
        },
    }


def _native(cpu: Cpu) -> str:
    """Which instruction set, and which faster one this machine does not give."""
    from hasten.ops.cpu.cpu import ISA_VARIABLE, ISAS

    missing = ISAS[: ISAS.index(cpu.isa)]
    forced = f" (forced with {ISA_VARIABLE})" if os.environ.get(ISA_VARIABLE) else ""
    without = f"; this machine does not give {' or '.join(missing)}" if missing and not forced else ""
    return f"kernels for {cpu.isa}{forced}{without}"


def _device(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return {"name": facts.name, "memory": facts.total_memory, "capability": f"{facts.major}.{facts.minor}"}


def _lines(report: Mapping[str, Any]) -> list[str]:
    hardware, kernels, models = report["hardware"], report["kernels"], report["models"]
    limit = "no limit" if hardware["core_limit"] is None else f"limit {hardware['core_limit']:g}"
    memory_limit = "no limit" if hardware["memory_limit"] is None else f"limit {hardware['memory_limit'] / 2**30:.1f} GiB"
    sets = " ".join(hardware["instruction_sets"]) or "none that matters here"
    # Kernels for the GPU come later; saying so is better than a silent CPU run beside an idle GPU.
    devices = [
        f"{d['name']}, {d['memory'] / 2**30:.1f} GiB, compute {d['capability']} (not used by this version)" for d in report["cuda"]
    ]
    cached = f"{models['cached']} ({models['cached_bytes'] / 1e9:.1f} GB)"
    rows = [
        ("cpu", f"{hardware['cpu']} ({hardware['architecture']}, {hardware['system']})"),
        ("cores", f"{hardware['logical_cores']} logical, {hardware['usable_cores']} rows_are_finite, {limit}"),
        ("memory", f"{hardware['memory'] / 2**30:.1f} GiB, {memory_limit}"),
        ("instructions", sets),
        ("cuda", "; ".join(devices) or "none that PyTorch sees"),
        ("kernels", f"{kernels['backend']} on {kernels['device']}: {kernels['why']}; {kernels['threads']} threads"),
        ("versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)),
        ("models", f"shipped: {', '.join(models['shipped']) or 'none'}; cached: {cached}"),
        ("cache", models["cache"]),
        ("hub", "offline (HF_HUB_OFFLINE)" if models["offline"] else "asked for models that are not here"),
    ]
    return [f"{name:<14}{text}" for name, text in rows]
