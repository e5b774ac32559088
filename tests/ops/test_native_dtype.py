"""The dtype that "auto" casts to, from the features of the processor and the GPU."""

from __future__ import annotations

import pytest
import torch

from hasten.ops.native_dtype import choose_dtype, native_dtype

X86 = {"architecture": "x86_64", "avx2": True, "avx512_f": True}


@pytest.mark.parametrize(
    ("cpu", "gpu", "dtype"),
    [
        (X86, (0, 0), "float32"),
        ({**X86, "avx512_bf16": False, "avx512_fp16": False}, (0, 0), "float32"),
        ({**X86, "avx512_bf16": True}, (0, 0), "bfloat16"),
        ({**X86, "amx_bf16": True, "avx512_fp16": True}, (0, 0), "bfloat16"),
        ({**X86, "avx512_fp16": True}, (0, 0), "float16"),
        ({"architecture": "aarch64"}, (0, 0), "bfloat16"),
        (X86, (9, 0), "bfloat16"),
        (X86, (8, 0), "bfloat16"),
        (X86, (7, 5), "float16"),
        (X86, (5, 2), "float32"),
    ],
)
def test_choice(cpu: dict[str, object], gpu: tuple[int, int], dtype: str) -> None:
    assert choose_dtype(cpu, gpu) == dtype


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakest of several GPUs counts."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: X86)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (7, 0)][device])
    assert native_dtype() == "float16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native_dtype() == "float32"
