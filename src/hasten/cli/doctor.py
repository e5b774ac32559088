"""``hasten doctor``: the hardware, the kernels that would run on it, the versions and the model cache."""

from __future__ import annotations

import dataclasses
import json as encoder
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.engine_options import HELP, Debug, Json, ModelArgument, ModelOption, model_name
from hasten.cli.report import megabytes
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.ops.cpu.cpu import Cpu


def doctor(
    name: ModelArgument = None,
    model: ModelOption = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="TEXT", help=HELP["dtype"])] = "auto",
    backend: Annotated[str, typer.Option("--backend", metavar="TEXT", help=HELP["backend"])] = "auto",
    activations: Annotated[str, typer.Option("--activations", metavar="TEXT", help=HELP["activations"])] = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Report the hardware, the kernels that would run on it and why, the versions, and the model cache.

    With a model: how its weights are stored and how they would be kept, before they are loaded.
    """
    if name is None and model is None:
        _refuse_options(dtype=dtype, backend=backend, activations=activations)
        report, lines_of = collect_report(), _report_lines
    else:
        from hasten.core.engine_options import EngineOptions
        from hasten.entrypoints.model_report import report_model

        options = EngineOptions(dtype=dtype, backend=backend, activations=activations, show_progress=sys.stderr.isatty())
        report, lines_of = report_model(model_name(name, model), options), _model_lines
    print(encoder.dumps(report) if json else "\n".join(f"{title:<14}{text}" for title, text in lines_of(report)))


def _refuse_options(**options: str) -> None:
    """Raise ``InvalidOption`` for options of a model where there is none."""
    given = [f"--{name} {value}" for name, value in options.items() if value != "auto"]
    if given:
        raise InvalidOption("there is no model for these options", got=" ".join(given), remedy="Name one, for instance: demo")


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


def _report_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    hardware, kernels, models = report["hardware"], report["kernels"], report["models"]
    core_limit = "no limit" if hardware["core_limit"] is None else f"limit {hardware['core_limit']:g}"
    memory_limit = "no limit" if hardware["memory_limit"] is None else f"limit {hardware['memory_limit'] / 2**30:.1f} GiB"
    # hasten has no GPU kernels yet, so the report says that the devices stay idle.
    devices = [
        f"{d['name']}, {d['memory'] / 2**30:.1f} GiB, compute {d['capability']} (not used by this version)" for d in report["cuda"]
    ]
    cached = f"{models['cached']} ({models['cached_bytes'] / 1e9:.1f} GB)"
    return [
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


def _model_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = [
        f"{use['scheme']}: {use['matrices']} {'matrix' if use['matrices'] == 1 else 'matrices'} "
        f"of {use['bits_per_weight']:.2f} bits per weight, "
        f"kept as {use['kept_as']}{'' if use['exact'] else ' (rounded)'}, {use['activations']} activations"
        for use in report["schemes"]
    ]
    return [
        ("model", report["folder"]),
        ("architecture", f"{report['architecture']}, {report['layers']} layers, {report['parameters']:,} parameters"),
        ("file", f"{megabytes(report['file_bytes'])} of weights, {report['bits_per_weight']:.2f} bits per weight"),
        *(("weights", text) for text in weights or [f"not quantised; {report['activations']} activations"]),
        ("dtype", report["dtype"]),
        ("memory", f"{megabytes(report['weight_bytes'])} for the weights, of {megabytes(report['free_bytes'])} that are free"),
        ("kernels", report["kernels"]),
        *((title, _parser(report[name])) for title, name in (("tools", "tool_call_parser"), ("thoughts", "reasoning_parser"))),
    ]


def _parser(choice: Mapping[str, str | None]) -> str:
    return f"parser {choice['name']}: {choice['reason']}" if choice["name"] else f"no parser: {choice['reason']}"
