"""``Cpu``: the kernels of one instruction set and the threads that run them."""

from __future__ import annotations

import os
import weakref
from enum import IntEnum

import torch

from hasten.core.errors import CapacityError, InvalidOption
from hasten.ops.cpu.cores import default_threads
from hasten.ops.cpu.library import NativeLibrary, ThreadsRefused, native_library
from hasten.ops.cpu.limits import check_option

ISAS = ("amx", "avx512", "avxvnni", "avx2")  # fastest first
ISA_VARIABLE = "HASTEN_CPU_ISA"


class Dtype(IntEnum):
    """As in native/kernels.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    INT8 = 3
    INT4 = 4
    CODES4 = 6
    CODES8 = 7
    FP8 = 8


DTYPES = {torch.float32: Dtype.FLOAT32, torch.bfloat16: Dtype.BFLOAT16, torch.float16: Dtype.FLOAT16}


class Cpu:
    """Owns the threads, and is freed with its last user.

    Between steps the threads spin for a millisecond and then sleep.
    """

    def __init__(self, library: NativeLibrary, isa: str | None, threads: int) -> None:
        """Start the threads.

        Raises ``InvalidOption`` for an instruction set that this machine does not support, or for too many threads. Raises
        ``CapacityError`` if the system refuses the threads or their memory.
        """
        self.library, self.threads = library, threads
        isas = supported_isas(library)
        if isa is not None and isa not in isas:
            raise InvalidOption("this machine cannot run these kernels", got=repr(isa), allowed=", ".join(isas) or "none")
        check_option("threads", threads, library.limits.threads)
        try:
            self.handle = library.new("cpu", None if isa is None else isa.encode(), threads)
        except (ThreadsRefused, MemoryError) as error:
            raise CapacityError(
                "the system refuses the threads of the native kernels",
                got=f"{threads:,} threads ({error})",
                remedy="Lower threads or OMP_NUM_THREADS, or raise the limits of this user or container",
            ) from error
        self.isa: str = library.cpu_isa(self.handle).decode()
        weakref.finalize(self, library.cpu_free, self.handle)


def supported_isas(library: NativeLibrary) -> list[str]:
    """Return the instruction sets with kernels that this machine supports, fastest first."""
    return [isa for isa in ISAS if library.runs_isa(isa.encode())]


def find_cpu(threads: int | None = None) -> Cpu | str:
    """Return the kernels for this machine, or one sentence that says why there are none.

    The environment variable HASTEN_CPU_ISA forces an instruction set; "none" disables the kernels. Raises ``InvalidOption`` if its
    value is unknown or unsupported, or if ``threads`` is out of range. Raises ``CapacityError`` if the system refuses the threads.
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
