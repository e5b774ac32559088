"""``known_machine``: the published limits of common processors, without sparsity.

GPUs: the makers' data sheets and architecture papers. Processors with many cores: memory channels times transfer rate, and cores
times base clock times operations per cycle (Zen 3: 32 FLOPs in float32, Zen 4: 32, Zen 5: 64, Sapphire Rapids: 64, and 2,048 in
bfloat16 with AMX). No program reaches all of a peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from hasten.advise.machine import KernelRate, MachineLimits
from hasten.core.errors import InvalidOption, nearest, show

GB = 10**9


@dataclass(frozen=True, slots=True)
class _Published:
    title: str
    gigabytes_per_second: float
    gigabytes: int | None  # of memory that belongs to the processor
    teraflops: dict[str, float]


_MACHINES = {
    # NVIDIA H100 data sheet (2023), H200 data sheet (2024)
    "h100": _Published("NVIDIA H100 SXM", 3350, 80, {"float32": 67, "bfloat16": 989.4, "fp8": 1978.9, "int8": 1978.9}),
    "h100-pcie": _Published("NVIDIA H100 PCIe", 2000, 80, {"float32": 51, "bfloat16": 756, "fp8": 1513, "int8": 1513}),
    "h200": _Published("NVIDIA H200 SXM", 4800, 141, {"float32": 67, "bfloat16": 989.4, "fp8": 1978.9, "int8": 1978.9}),
    # NVIDIA A100 data sheet (2021)
    "a100-80gb": _Published("NVIDIA A100 80GB SXM", 2039, 80, {"float32": 19.5, "bfloat16": 312, "int8": 624}),
    "a100-40gb": _Published("NVIDIA A100 40GB SXM", 1555, 40, {"float32": 19.5, "bfloat16": 312, "int8": 624}),
    # NVIDIA A10, L4 and L40S data sheets
    "a10": _Published("NVIDIA A10", 600, 24, {"float32": 31.2, "bfloat16": 125, "int8": 250}),
    "l4": _Published("NVIDIA L4", 300, 24, {"float32": 30.3, "bfloat16": 121, "fp8": 242, "int8": 242}),
    "l40s": _Published("NVIDIA L40S", 864, 48, {"float32": 91.6, "bfloat16": 362, "fp8": 733, "int8": 733}),
    # NVIDIA Ada and Ampere GA102 architecture papers; sums of 16-bit and fp8 products in float32
    "rtx-4090": _Published("NVIDIA RTX 4090", 1008, 24, {"float32": 82.6, "bfloat16": 165.2, "fp8": 330.3, "int8": 660.6}),
    "rtx-3090": _Published("NVIDIA RTX 3090", 936, 24, {"float32": 35.6, "bfloat16": 71, "int8": 284}),
    # AMD Instinct MI300X data sheet
    "mi300x": _Published("AMD MI300X", 5300, 192, {"float32": 163.4, "bfloat16": 1307.4, "fp8": 2614.9, "int8": 2614.9}),
    # Apple's announcements of each chip: unified memory, GPU in float32
    "m1": _Published("Apple M1", 68.25, None, {"float32": 2.6}),
    "m1-pro": _Published("Apple M1 Pro", 200, None, {"float32": 5.2}),
    "m1-max": _Published("Apple M1 Max", 400, None, {"float32": 10.4}),
    "m1-ultra": _Published("Apple M1 Ultra", 800, None, {"float32": 21}),
    "m2": _Published("Apple M2", 100, None, {"float32": 3.6}),
    # 8 channels of DDR4-3200; 12 of DDR5-4800; 12 of DDR5-6000; 8 of DDR5-4800
    "epyc-7763": _Published("AMD EPYC 7763, one socket", 204.8, None, {"float32": 5.0}),
    "epyc-9654": _Published("AMD EPYC 9654, one socket", 460.8, None, {"float32": 7.4, "bfloat16": 14.7, "int8": 29.5}),
    "epyc-9755": _Published("AMD EPYC 9755, one socket", 576, None, {"float32": 22.1, "bfloat16": 44.2, "int8": 88.5}),
    "xeon-8480": _Published("Intel Xeon 8480+, one socket", 307.2, None, {"float32": 7.2, "bfloat16": 229, "int8": 459}),
}


def machine_names() -> tuple[str, ...]:
    return tuple(_MACHINES)


def known_machine(name: str) -> MachineLimits:
    """Return the limits of a machine of the table. Raises ``InvalidOption`` with the nearest name."""
    found = _MACHINES.get(name.lower())
    if found is None:
        raise InvalidOption("this machine is not in the table", got=show(name), remedy=nearest(name.lower(), _MACHINES))
    return MachineLimits(
        name=found.title,
        bandwidth=found.gigabytes_per_second * 1e9,
        rates={arithmetic: KernelRate(((1, rate * 1e12),)) for arithmetic, rate in found.teraflops.items()},
        memory=None if found.gigabytes is None else found.gigabytes * GB,
    )
