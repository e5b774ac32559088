"""``choose_backend``: the backend for these options on this machine."""

from __future__ import annotations

import torch

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.ops.choose import choose_ops
from hasten.ops.cpu.cores import choose_threads
from hasten.ops.cpu.cpu import find_cpu
from hasten.runners.backends.base import Backend
from hasten.runners.backends.native import NativeBackend
from hasten.runners.backends.torch import TorchBackend


def choose_backend(options: EngineOptions) -> Backend:
    """Return the native backend where its kernels run, and the PyTorch backend elsewhere.

    Raises ``InvalidOption``, with the reason, if an option needs native kernels and there are none.
    """
    threads = choose_threads(options.threads)
    int8_kv = options.kv_cache_dtype == "int8"
    cpu = "backend='torch' excludes them" if options.backend == "torch" else find_cpu(threads)
    if not isinstance(cpu, str):
        return NativeBackend(cpu, options.quantization, draft_quantization=options.resolved_draft_quantization, int8_kv=int8_kv)
    needs_kernels = {
        "backend": options.backend == "cpu",
        "quantization": options.quantization is not None,
        "draft_quantization": options.draft_quantization != "auto",
        "kv_cache_dtype": int8_kv,
    }
    names = [name for name, needs in needs_kernels.items() if needs]
    if names:
        raise InvalidOption(
            f"{' and '.join(names)} need the native CPU kernels, and {cpu}",
            got=", ".join(f"{name}={getattr(options, name)!r}" for name in names),
            remedy="Run hasten doctor to see which kernels this machine has",
        )
    if options.threads is not None or torch.get_num_threads() > threads:
        torch.set_num_threads(threads)  # for the whole process: PyTorch has no other setting
    ops, reason = choose_ops()
    return TorchBackend(ops, reason if options.backend == "torch" else f"{cpu}; {reason}")
