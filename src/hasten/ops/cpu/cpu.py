"""``Cpu``: the kernels of one instruction set and the threads that run them."""

from __future__ import annotations

import os
import weakref
from enum import IntEnum

import torch

from hasten.core.errors import InvalidOption
from hasten.ops.cpu.cores import default_threads
from hasten.ops.cpu.library import NativeLibrary, native_library

ISAS = ("amx", "avx512", "avxvnni", "avx2")  # fastest first
ISA_VARIABLE = "HASTEN_CPU_ISA"


class Dtype(IntEnum):
    """As in native/kernels.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    INT8 = 3
    INT4 = 4


DTYPES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16}


class Cpu:
    """Owns the threads, and is freed with its last user.

    Between steps the threads spin for a millisecond and then sleep.
    """

    def __init__(self, library: NativeLibrary, isa: str | None, threads: int) -> None:
        """Raises ``InvalidOption`` if this machine does not support the instruction set."""
        self.library, self.threads = library, threads
        handle = library.cpu_new(None if isa is None else isa.encode(), threads)
        if not handle:
            raise InvalidOption(
                "this machine cannot run these kernels", got=repr(isa), allowed=", ".join(supported_isas(library)) or "none"
            )
        self.handle = handle
        self.isa: str = library.cpu_isa(handle).decode()
        weakref.finalize(self, library.cpu_free, handle)


def supported_isas(library: NativeLibrary) -> list[str]:
    """Return the instruction sets with kernels that this machine supports, fastest first."""
    supported = []
    for isa in ISAS:
        if handle := library.cpu_new(isa.encode(), 1):
            library.cpu_free(handle)
            supported.append(isa)
    return supported


def find_cpu(threads: int | None = None) -> Cpu | str:
    """Return the kernels for this machine, or one sentence that says why there are none.

    The environment variable HASTEN_CPU_ISA forces an instruction set; "none" disables the kernels. Raises ``InvalidOption`` if its
    value is unknown or unsupported, or if ``threads`` is below 1.
    """
    if threads is not None and threads < 1:
        raise InvalidOption("threads is out of range", got=threads, allowed="a whole number from 1")
    isa = os.environ.get(ISA_VARIABLE) or None
    if isa == "none":
        return f"{ISA_VARIABLE}=none forbids native kernels"
    if isa is not None and isa not in ISAS:
        raise InvalidOption(f"{ISA_VARIABLE} names an unknown instruction set", got=repr(isa), allowed=f"{', '.join(ISAS)} or none")
    library = native_library()
    if isinstance(library, str):
        return library
    if not supported_isas(library):
        return "this processor has no AVX2, for which the native kernels are made"
    return Cpu(library, isa, threads or default_threads())
