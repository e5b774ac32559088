"""``hasten doctor``: the hardware, the kernels that would run on it, the versions and the model cache."""

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
    """Report the hardware, the kernels that would run on it and why, the versions, and the model cache."""
    report = collect_report()
    print(encoder.dumps(report) if json else "\n".join(_report_lines(report)))


def collect_report() -> dict[str, Any]:
    import torch
    from huggingface_hub import constants

    from hasten.bench.machine import this_machine
    from hasten.bench.provenance import commit, versions
    from hasten.checkpoints import hub
    from hasten.core.engine_options import EngineOptions
    from hasten.models.load import DTYPES
    from hasten.ops.choose import choose_ops
    from hasten.ops.cpu.cpu import find_cpu
    from hasten.runners.backends.choose import choose_backend

    machine = this_machine()
    ops, reason = choose_ops()
    native = find_cpu()
    if isinstance(native, str):
        kernels = {"backend": ops.name, "why": f"{native}; {reason}", "threads": torch.get_num_threads()}
    else:
        kernels = {"backend": "native", "why": _native_reason(native), "threads": native.threads}
    backend, cached = choose_backend(EngineOptions()), hub.cached_models()
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "hardware": {**dataclasses.asdict(machine), "cores": machine.cores},
        "cuda": [
            {"name": device.name, "memory": device.total_memory, "capability": f"{device.major}.{device.minor}"}
            for device in map(torch.cuda.get_device_properties, range(num_devices))
        ],
        "kernels": {"device": "cpu", **kernels},
        "speculation_off_because": {name: backend.batch_dependence(dtype) for name, dtype in DTYPES.items()},
        "versions": {**versions(), "commit": commit()},
        "models": {
            "shipped": [name for name, folder in hub.SHIPPED.items() if folder.is_dir()],
            "cache": constants.HF_HUB_CACHE,
            "cached": len(cached),
            "cached_bytes": sum(model.size for model in cached),
            "offline": bool(constants.HF_HUB_OFFLINE),
        },
    }


def _native_reason(cpu: Cpu) -> str:
    """Return the instruction set of the kernels, and the faster ones that this machine lacks."""
    from hasten.ops.cpu.cpu import ISA_VARIABLE, ISAS

    if os.environ.get(ISA_VARIABLE):
        return f"kernels for {cpu.isa} (forced with {ISA_VARIABLE})"
    missing = ISAS[: ISAS.index(cpu.isa)]
    return f"kernels for {cpu.isa}" + (f"; this machine lacks {' and '.join(missing)}" if missing else "")


def _speculation(off_because: Mapping[str, str | None]) -> str:
    """Return for which dtypes of weights drafts are on by default, and why not for the others."""
    on = [name for name, reason in off_because.items() if reason is None]
    off = {reason: [name for name in off_because if off_because[name] == reason] for reason in off_because.values() if reason}
    parts = [f"on by default for {', '.join(on)}"] if on else []
    return "; ".join(parts + [f"off by default for {', '.join(names)}: {reason}" for reason, names in off.items()])


def _report_lines(report: Mapping[str, Any]) -> list[str]:
    hardware, kernels, models = report["hardware"], report["kernels"], report["models"]
    core_limit = "no limit" if hardware["core_limit"] is None else f"limit {hardware['core_limit']:g}"
    memory_limit = "no limit" if hardware["memory_limit"] is None else f"limit {hardware['memory_limit'] / 2**30:.1f} GiB"
    # hasten has no GPU kernels yet, so the report says that the devices stay idle.
    devices = [
        f"{d['name']}, {d['memory'] / 2**30:.1f} GiB, compute {d['capability']} (not used by this version)" for d in report["cuda"]
    ]
    cached = f"{models['cached']} ({models['cached_bytes'] / 1e9:.1f} GB)"
    rows = [
        ("cpu", f"{hardware['cpu']} ({hardware['architecture']}, {hardware['system']})"),
        ("cores", f"{hardware['logical_cores']} logical, {hardware['usable_cores']} usable, {core_limit}"),
        ("memory", f"{hardware['memory'] / 2**30:.1f} GiB, {memory_limit}"),
        ("instructions", " ".join(hardware["instruction_sets"]) or "none that hasten uses"),
        ("cuda", "; ".join(devices) or "no device found by PyTorch"),
        ("kernels", f"{kernels['backend']} on {kernels['device']}: {kernels['why']}; {kernels['threads']} threads"),
        ("speculation", _speculation(report["speculation_off_because"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)),
        ("models", f"shipped: {', '.join(models['shipped']) or 'none'}; cached: {cached}"),
        ("cache", models["cache"]),
        ("hub", "offline (HF_HUB_OFFLINE)" if models["offline"] else "online, used for models that are not in the cache"),
    ]
    return [f"{name:<14}{text}" for name, text in rows]
