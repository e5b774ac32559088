"""``native_dtype``: the 16-bit dtype in which this machine computes without emulation, if any."""

from __future__ import annotations

from collections.abc import Mapping

_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # as in ``torch.cpu.get_capabilities``
_FLOAT16 = ("avx512_fp16", "amx_fp16")
_CUDA_BFLOAT16, _CUDA_FLOAT16 = (8, 0), (5, 3)  # compute capability


def native_dtype() -> str:
    """Return "bfloat16" if a processor or GPU here computes in it, else "float16" if so, else "float32".

    The weakest of several GPUs counts.
    """
    import torch

    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    gpu = min((torch.cuda.get_device_capability(device) for device in devices), default=(0, 0))
    return choose_dtype(torch.cpu.get_capabilities(), gpu)


def choose_dtype(cpu: Mapping[str, object], gpu: tuple[int, int]) -> str:
    """Return the dtype for these CPU features and this compute capability; (0, 0): no GPU."""
    if has_bf16_arithmetic(cpu) or gpu >= _CUDA_BFLOAT16:
        return "bfloat16"
    return "float16" if any(cpu.get(name) for name in _FLOAT16) or gpu >= _CUDA_FLOAT16 else "float32"


def has_bf16_arithmetic(cpu: Mapping[str, object]) -> bool:
    """Whether PyTorch multiplies bf16 matrices without emulation. Only x86 reports that it does not."""
    return cpu.get("architecture") != "x86_64" or any(cpu.get(name) for name in _BFLOAT16)
