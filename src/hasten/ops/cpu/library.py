"""The shared library ``_native`` with typed functions. It knows no tensors and no models."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

ABI = 9
LIBRARY_FILE = Path(__file__).parent / "_native.so"
NONE, LOGITS = -1, -2  # as buffers of a program: no buffer, and the logits of the step
# Results that stand for errors, as in hasten.h.
_OUT_OF_MEMORY, _INVALID_ARGUMENT, _NO_THREADS, _NOT_FINITE = -1, -2, -4, -5


class NativeError(Exception):
    """A native function failed for a reason that its caller explains to the user."""


class ThreadsRefused(NativeError):
    """The system refuses to start a thread."""


class NotFinite(NativeError):
    """A weight is NaN or infinite."""


class Limits(Structure):
    """``hasten_limits`` of hasten.h: the largest values that the kernels take.

    No other Python file knows these numbers.
    """

    threads: int
    features: int  # inputs or outputs of a matrix, and columns of a buffer
    int8_inputs: int  # inputs of a matrix in groups, or multiplied with int8 activations
    head_dim: int
    block_size: int  # tokens
    tokens: int  # of one step
    _fields_ = tuple((name, c_int64) for name in ("threads", "features", "int8_inputs", "head_dim", "block_size", "tokens"))


class StepArguments(Structure):
    """``hasten_step`` of hasten.h."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_sequences", c_int64),
        ("num_logits", c_int64),
        ("num_groups", c_int64),
        ("num_block_ids", c_int64),
        ("first_layer", c_int64),
        ("last_layer", c_int64),
        ("token_ids", c_void_p),
        ("sequences", c_void_p),
        ("block_tables", c_void_p),
        ("block_ids", c_void_p),
        ("logits_indices", c_void_p),
        ("tree_mask", c_void_p),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
    )


class _Integer:
    """An argument of 64 bits. ctypes alone would cut off a larger number without a word."""

    @classmethod
    def from_param(cls, value: int) -> c_int64:
        if not -(1 << 63) <= value < 1 << 63:
            raise OverflowError(f"{value} does not fit 64 bits")
        return c_int64(value)


_N, _F, _P, _OUT = _Integer, c_float, c_void_p, POINTER(c_void_p)
_I, _L = c_int32, c_int64  # results; as arguments, numbers that are known to fit, in functions called in every step
# name: (result, arguments), as in hasten.h
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "abi": (_I, ()),
    "get_limits": (None, (POINTER(Limits),)),
    "runs_isa": (_I, (c_char_p,)),
    "cpu_new": (_I, (c_char_p, _N, _OUT)),
    "cpu_free": (None, (_P,)),
    "cpu_isa": (c_char_p, (_P,)),
    "weights_new": (_I, (_OUT,)),
    "weights_free": (None, (_P,)),
    "weights_bytes": (_L, (_P,)),
    "matrix_new": (_I, (_P, _N, _N, _N, _OUT)),
    "matrix_pack": (_I, (_P, _P, _P, _N, _N, _N, _N, _N)),
    "matrix_new_grouped": (_I, (_P, _N, _N, _N, _N, _N, _N, _OUT)),
    "matrix_pack_codes": (_I, (_P, _P, _P, _N, _P, _P, _N, _N)),
    "matrix_pack_nested": (_I, (_P, _P, _P, _N, _P, _P, _P, _P, _N, _N)),
    "matrix_multiply": (_I, (_P, _P, _P, _N, _P, _N, _P)),
    "matrix_lookup": (_I, (_P, _P, _P, _N, _P)),
    "kv_new": (_I, (_N, _N, _OUT)),
    "kv_free": (None, (_P,)),
    "kv_add_layer": (_I, (_P, _N, _N, _N, _N)),
    "kv_copy_block": (_I, (_P, _L, _L, _L)),
    "kv_read_blocks": (_I, (_P, _N, _P, _N, _P)),
    "kv_write_blocks": (_I, (_P, _N, _P, _N, _P)),
    "kv_move_token": (_I, (_P, _L, _L, _L, _L, _L)),
    "kv_block_bytes": (_L, (_N, _N, _N, _N)),
    "program_new": (_I, (_P, _P, _N, _OUT)),
    "program_free": (None, (_P,)),
    "program_add_buffer": (_I, (_P, _N)),
    "program_add_int8_buffer": (_I, (_P, _N)),
    "program_add_slice": (_I, (_P, _N, _N, _N)),
    "program_buffer_data": (_I, (_P, _N, _OUT, POINTER(c_int64))),
    "program_begin_layer": (_I, (_P,)),
    "program_begin_head": (_I, (_P,)),
    "program_embed": (_I, (_P, _P, _N, _N)),
    "program_rotary_table": (_I, (_P, _P, _N, _F)),
    "program_norm": (_I, (_P, _N, _N, _N, _P, _P, _F, _N, _N)),
    "program_linear": (_I, (_P, _P, _N, _N, _P, _N, _N, _N, _N)),
    "program_activate": (_I, (_P, _N, _N, _N, _N, _N, _N)),
    "program_rope_and_cache": (_I, (_P, _N, _N, _N, _N, _P, _P, _P, _P, _F, _N)),
    "program_attend": (_I, (_P, _N, _N, _N, _F, _F, _N, _P, _N)),
    "program_gather": (_I, (_P, _N, _N, _N)),
    "program_select_columns": (_I, (_P, _N, _P, _N, _N)),
    "program_run": (_I, (_P, POINTER(StepArguments))),
    "sample_tokens": (_I, (_P, _P, _L, _L, _L, c_char_p, _P, _P, _P)),
}


def _check(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    """Return the result of a native function. Raises the error that a result below 0 stands for."""
    if result >= 0:
        return result
    if result == _OUT_OF_MEMORY:
        raise MemoryError(f"no memory in {function.__name__}")
    if result == _INVALID_ARGUMENT:  # Python has checked what users and files say, so this is a bug
        raise AssertionError(f"{function.__name__} refuses its arguments {arguments[1:]}")
    if result == _NO_THREADS:
        raise ThreadsRefused("the system refuses to start a thread")
    if result == _NOT_FINITE:
        raise NotFinite("a weight is NaN or infinite")
    raise NativeError(f"{function.__name__} failed with code {result}")


class NativeLibrary:
    """The functions of hasten.h as attributes without the prefix ``hasten_``. Calls release the GIL.

    A function that fails raises ``MemoryError``, ``NativeError``, or ``AssertionError`` for arguments that it refuses.
    """

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises ``OSError`` if the file is missing, for another machine or of another ABI version.
        """
        self._library = ctypes.CDLL(str(path))
        if (version := self._library.hasten_abi()) != ABI:
            raise OSError(f"{path} has version {version} of the native interface and hasten needs {ABI}; install hasten again")
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, f"hasten_{name}")
            function.restype, function.argtypes = result, arguments
            if result in (_I, _L):
                function.errcheck = _check
            setattr(self, name, function)
        self.limits = Limits()
        self.get_limits(ctypes.byref(self.limits))

    def new(self, kind: str, *arguments: object) -> int:
        """Return the handle of a new object of this kind, such as "matrix" or "matrix_new_grouped"."""
        handle = c_void_p()
        getattr(self, kind if "_new_" in kind else f"{kind}_new")(*arguments, ctypes.byref(handle))
        assert handle.value is not None
        return handle.value

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)


@cache
def native_library() -> NativeLibrary | str:
    """Return the library, or one sentence that says why it is missing."""
    if not LIBRARY_FILE.exists():
        return "hasten was installed without native kernels (no C++ compiler, or not an x86-64 processor)"
    try:
        return NativeLibrary(LIBRARY_FILE)
    except OSError as error:
        return f"the native kernels could not be loaded: {error}"
