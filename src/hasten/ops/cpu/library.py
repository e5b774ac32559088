"""The shared library ``_native`` with typed functions. It knows no tensors and no models."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

ABI = 6
NONE, LOGITS = -1, -2  # as buffers of a program: no buffer, and the logits of the step


class StepArguments(Structure):
    """``hasten_step`` of hasten.h."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_sequences", c_int32),
        ("num_logits", c_int32),
        ("num_groups", c_int32),
        ("first_layer", c_int32),
        ("last_layer", c_int32),
        ("token_ids", c_void_p),
        ("sequences", c_void_p),
        ("block_tables", c_void_p),
        ("block_ids", c_void_p),
        ("logits_indices", c_void_p),
        ("tree_mask", c_void_p),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
    )


_I, _L, _F, _P = c_int32, c_int64, c_float, c_void_p
# name: (result, arguments), as in hasten.h
_FUNCTIONS = {
    "abi": (_I, ()),
    "cpu_new": (_P, (c_char_p, _I)),
    "cpu_free": (None, (_P,)),
    "cpu_isa": (c_char_p, (_P,)),
    "weights_new": (_P, ()),
    "weights_free": (None, (_P,)),
    "weights_bytes": (_L, (_P,)),
    "matrix_new": (_P, (_P, _I, _I, _I)),
    "matrix_pack": (_I, (_P, _P, _P, _I, _L, _L, _I, _I)),
    "matrix_multiply": (_I, (_P, _P, _P, _I, _P, _I, _P)),
    "matrix_lookup": (None, (_P, _P, _P, _I, _P)),
    "kv_new": (_P, (_I, _I)),
    "kv_free": (None, (_P,)),
    "kv_add_layer": (_I, (_P, _I, _I, _I, _I)),
    "kv_copy_block": (None, (_P, _I, _I, _I)),
    "kv_move_token": (None, (_P, _I, _I, _I, _I, _I)),
    "kv_block_bytes": (_L, (_I, _I, _I, _I)),
    "program_new": (_P, (_P, _P, _I)),
    "program_free": (None, (_P,)),
    "program_add_buffer": (_I, (_P, _I)),
    "program_add_int8_buffer": (_I, (_P, _I)),
    "program_add_slice": (_I, (_P, _I, _I)),
    "program_buffer_data": (_P, (_P, _I, POINTER(c_int64))),
    "program_begin_layer": (None, (_P,)),
    "program_begin_head": (None, (_P,)),
    "program_embed": (None, (_P, _P, _I, _I)),
    "program_rotary_table": (_I, (_P, _P, _I, _F)),
    "program_norm": (None, (_P, _I, _I, _I, _P, _P, _F, _I, _I)),
    "program_linear": (None, (_P, _P, _I, _I, _P, _I, _I, _I, _I)),
    "program_activate": (None, (_P, _I, _I, _I, _I, _I, _I)),
    "program_rope_and_cache": (None, (_P, _I, _I, _I, _I, _P, _P, _P, _P, _F, _I)),
    "program_attend": (None, (_P, _I, _I, _I, _F, _F, _I, _P, _I)),
    "program_gather": (None, (_P, _I, _I, _I)),
    "program_run": (_I, (_P, POINTER(StepArguments))),
    "sample_tokens": (_I, (_P, _P, _I, _L, _L, c_char_p, _P, _P, _P)),
}


class NativeLibrary:
    """The functions of hasten.h as attributes without the prefix ``hasten_``. Calls release the GIL."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises ``OSError`` if the file is missing, for another machine or of another ABI version.
        """
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, f"hasten_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if (version := self._library.hasten_abi()) != ABI:
            raise OSError(f"{path} has version {version} of the native interface and hasten needs {ABI}; install hasten again")

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)


@cache
def native_library() -> NativeLibrary | str:
    """Return the library, or one sentence that says why it is missing."""
    path = Path(__file__).parent / "_native.so"
    if not path.exists():
        return "hasten was installed without native kernels (no C++ compiler, or not an x86-64 processor)"
    try:
        return NativeLibrary(path)
    except OSError as error:
        return f"the native kernels could not be loaded: {error}"
