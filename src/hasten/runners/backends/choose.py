"""Which backend, from the options and the machine."""

from __future__ import annotations

import torch

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.ops.choose import choose_ops
from hasten.ops.cpu.cpu import find_cpu
from hasten.runners.backends.base import Backend
from hasten.runners.backends.native import NativeBackend
from hasten.runners.backends.torch import TorchBackend


def choose_backend(options: EngineOptions) -> Backend:
    """The native kernels where they run, else PyTorch.

    Raises ``InvalidOption`` if the options need native kernels (or name them) and there are none, with the reason.
    """
    native = "this run was asked for the torch backend" if options.backend == "torch" else find_cpu(options.threads)
    if not isinstance(native, str):
        int8_kv = options.kv_cache_dtype == "int8"
        return NativeBackend(native, options.quantization, draft_quantization=options.resolved_draft_quantization, int8_kv=int8_kv)
    needed = {
        "backend": options.backend == "cpu",
        "quantization": options.quantization is not None,
        "draft_quantization": options.draft_quantization != "auto",
        "kv_cache_dtype": options.kv_cache_dtype == "int8",
    }
    if any(needed.values()):
        raise InvalidOption(
            f"{' and '.join(name for name, wanted in needed.items() if wanted)} need the native CPU kernels, and {native}",
            got=", ".join(f"{name}={getattr(options, name)!r}" for name, wanted in needed.items() if wanted),
            remedy="hasten doctor says which kernels there are",
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)  # PyTorch has one number for the whole process
    ops, reason = choose_ops("cpu")
    return TorchBackend(ops, reason if options.backend == "torch" else f"{native}; {reason}")
