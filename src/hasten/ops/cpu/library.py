"""The shared library ``_native``: found, loaded once, its functions typed. Knows no tensor and no model."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

ABI = 5
NONE, LOGITS = -1, -2  # buffers of a program: none, and the logits of the step


class StepArguments(Structure):
    """``hasten_step`` of hasten.h."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_rows", c_int32),
        ("num_logits", c_int32),
        ("num_groups", c_int32),
        ("first_layer", c_int32),
        ("last_layer", c_int32),
        ("token_ids", c_void_p),
        ("rows", c_void_p),
        ("tables", c_void_p),
        ("blocks", c_void_p),
        ("logits_tokens", c_void_p),
        ("tree", c_void_p),
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
    "kv_copy": (None, (_P, _I, _I, _I)),
    "kv_move": (None, (_P, _I, _I, _I, _I, _I)),
    "kv_block_bytes": (_L, (_I, _I, _I, _I)),
    "program_new": (_P, (_P, _P, _I)),
    "program_free": (None, (_P,)),
    "program_rows": (_I, (_P, _I)),
    "program_quantized_rows": (_I, (_P, _I)),
    "program_part": (_I, (_P, _I, _I)),
    "program_data": (_P, (_P, _I, POINTER(c_int64))),
    "program_begin_layer": (None, (_P,)),
    "program_begin_head": (None, (_P,)),
    "program_embed": (None, (_P, _P, _I, _I)),
    "program_rotary": (_I, (_P, _P, _I, _F)),
    "program_norm": (None, (_P, _I, _I, _I, _P, _P, _F, _I, _I)),
    "program_linear": (None, (_P, _P, _I, _I, _P, _I, _I, _I, _I)),
    "program_activate": (None, (_P, _I, _I, _I, _I, _I, _I)),
    "program_prepare": (None, (_P, _I, _I, _I, _I, _P, _P, _P, _P, _F, _I)),
    "program_attend": (None, (_P, _I, _I, _I, _F, _F, _I, _P, _I)),
    "program_gather": (None, (_P, _I, _I, _I)),
    "program_run": (_I, (_P, POINTER(StepArguments))),
    "draw": (_I, (_P, _P, _I, _L, _L, c_char_p, _P, _P, _P)),
}


class NativeLibrary:
    """The functions of hasten.h as attributes, without their prefix. Calls release the interpreter lock."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError`` if the file is missing, not for this machine, or of another version of the interface."""
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, f"hasten_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if (found := self._library.hasten_abi()) != ABI:
            raise OSError(f"{path} has version {found} of the native interface and hasten needs {ABI}; install hasten again")

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)


@cache
def native_library() -> NativeLibrary | str:
    """The library, or why there is none, in one sentence."""
    path = Path(__file__).parent / "_native.so"
    if not path.exists():
        return "hasten was installed without native kernels (no C++ compiler, or not an x86-64 processor)"
    try:
        return NativeLibrary(path)
    except OSError as error:
        return f"the native kernels could not be loaded: {error}"
