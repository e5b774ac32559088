"""``choose_backend``: the backend for these options on this machine."""

from __future__ import annotations

import warnings

import torch

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.models.kernel_shapes import kernel_faults
from hasten.models.spec import DecoderSpec
from hasten.ops.choose import choose_ops
from hasten.ops.cpu.cores import choose_threads
from hasten.ops.cpu.cpu import Cpu, find_cpu
from hasten.runners.backends.base import Backend
from hasten.runners.backends.native import NativeBackend
from hasten.runners.backends.torch import TorchBackend


class KernelsWarning(UserWarning):
    """The native kernels do not take a model, so PyTorch computes it; the message says why."""


def choose_backend(options: EngineOptions, spec: DecoderSpec | None = None) -> Backend:
    """Return the native backend where its kernels run and take the model, else the PyTorch backend.

    ``spec``: the model; None: any. A model that the kernels do not take is computed by PyTorch, with a warning. Raises
    ``InvalidOption``, with the reason, if an option needs native kernels and there are none.
    """
    threads = choose_threads(options.threads)
    cpu = "backend='torch' excludes them" if options.backend == "torch" else find_cpu(threads)
    if not isinstance(cpu, str) and spec is not None and (faults := _faults(cpu, options, spec)):
        cpu = f"they do not take this model: {faults}"
        _check_kernels_are_optional(options, cpu, "Leave the option out, and PyTorch computes this model")
        warnings.warn(f"PyTorch computes this model without the native CPU kernels: {cpu}", KernelsWarning, stacklevel=2)
    if not isinstance(cpu, str):
        return NativeBackend(
            cpu,
            options.quantization,
            draft_quantization=options.resolved_draft_quantization,
            int8_kv=options.kv_cache_dtype == "int8",
            activations=options.activations,
        )
    _check_kernels_are_optional(options, cpu, "Run hasten doctor to see which kernels this machine has")
    if options.threads is not None or torch.get_num_threads() > threads:
        torch.set_num_threads(threads)  # for the whole process: PyTorch has no other setting
    ops, reason = choose_ops()
    return TorchBackend(ops, reason if options.backend == "torch" else f"{cpu}; {reason}")


def _faults(cpu: Cpu, options: EngineOptions, spec: DecoderSpec) -> str:
    int8_activations = options.quantization in ("int8", "int4") or options.activations == "int8"
    return "; ".join(kernel_faults(spec, cpu.library.limits, int8_activations=int8_activations))


def _check_kernels_are_optional(options: EngineOptions, reason: str, remedy: str) -> None:
    """Raise ``InvalidOption`` if an option needs native kernels."""
    needs_kernels = {
        "backend": options.backend == "cpu",
        "quantization": options.quantization is not None,
        "draft_quantization": options.draft_quantization != "auto",
        "activations": options.activations == "int8",
        "kv_cache_dtype": options.kv_cache_dtype == "int8",
    }
    names = [name for name, needs in needs_kernels.items() if needs]
    if names:
        raise InvalidOption(
            f"{' and '.join(names)} {'need' if names[1:] else 'needs'} the native CPU kernels, and {reason}",
            got=", ".join(f"{name}={getattr(options, name)!r}" for name in names),
            remedy=remedy,
        )
