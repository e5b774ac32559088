"""The native library: built where a compiler exists, selected by instruction set, rejected with a reason."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

from hasten import LLM, SamplingParams
from hasten.core.errors import InvalidOption
from hasten.ops.cpu.cpu import ISA_VARIABLE, find_cpu, supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def library() -> NativeLibrary:
    loaded = native_library()
    assert isinstance(loaded, NativeLibrary), loaded
    return loaded


def test_a_compiler_implies_native_kernels() -> None:
    """The fallback to PyTorch must not hide a failed build."""
    can_build = platform.machine() in ("x86_64", "AMD64") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    assert isinstance(native_library(), NativeLibrary) == can_build


def test_the_fastest_instruction_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    cpu = find_cpu()
    assert not isinstance(cpu, str) and cpu.isa == supported_isas(library())[0]


def test_every_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = supported_isas(library())
    assert "avx2" in isas
    for isa in isas:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        cpu = find_cpu(threads=1)
        assert not isinstance(cpu, str) and cpu.isa == isa


def test_an_unsupported_instruction_set_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = [isa for isa in ("amx", "avx512", "avxvnni", "avx2") if isa not in supported_isas(library())]
    for isa in unsupported:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        with pytest.raises(InvalidOption, match=f"cannot run these kernels: got '{isa}'; allowed: .*avx2"):
            find_cpu()
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(InvalidOption, match="unknown instruction set: got 'sse9'; allowed: amx, avx512, avxvnni, avx2 or none"):
        find_cpu()


def test_without_native_kernels_pytorch_serves_and_describe_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    native = LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="4MiB")
    monkeypatch.setenv(ISA_VARIABLE, "none")
    torch = LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="4MiB")
    assert "HASTEN_CPU_ISA=none" in torch.describe()["kernels"] and "native" in native.describe()["kernels"]
    token_ids = [llm.generate("def add(a, b):", GREEDY)[0].outputs[0].token_ids for llm in (native, torch)]
    assert token_ids[0] == token_ids[1]


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"kv_cache_dtype": "int8"}, {"backend": "cpu"}])
def test_options_of_native_kernels_are_rejected_without_them(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "none")
    with pytest.raises(InvalidOption, match=f"{next(iter(options))} .*native CPU kernels.*HASTEN_CPU_ISA=none"):
        LLM("demo", **options)


def test_threads_below_one_are_rejected() -> None:
    with pytest.raises(InvalidOption, match=r"threads=0 .*1 to 1024"):
        LLM("demo", threads=0)


def test_the_cpu_starts_and_joins_its_threads() -> None:
    before = len(os.listdir("/proc/self/task"))
    cpu = find_cpu(threads=5)
    assert not isinstance(cpu, str) and len(os.listdir("/proc/self/task")) == before + 4
    del cpu
    assert len(os.listdir("/proc/self/task")) == before
