"""The native library: there where it can be built, chosen by instruction set, refused with a reason."""

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
    found = native_library()
    assert isinstance(found, NativeLibrary), found
    return found


def test_where_there_is_a_compiler_there_are_native_kernels() -> None:
    """The fallback to PyTorch must not hide a build that failed."""
    can_build = platform.machine() in ("x86_64", "AMD64") and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    assert isinstance(native_library(), NativeLibrary) == can_build


def test_the_fastest_instruction_set_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    cpu = find_cpu()
    assert not isinstance(cpu, str) and cpu.isa == supported_isas(library())[0]


def test_every_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    found = supported_isas(library())
    assert "avx2" in found
    for isa in found:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        cpu = find_cpu(threads=1)
        assert not isinstance(cpu, str) and cpu.isa == isa


def test_an_instruction_set_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [isa for isa in ("amx", "avx512", "avxvnni", "avx2") if isa not in supported_isas(library())]
    for isa in missing:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        with pytest.raises(InvalidOption, match=f"cannot run these kernels: got '{isa}'; allowed: .*avx2"):
            find_cpu()
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(InvalidOption, match="unknown instruction set: got 'sse9'; allowed: amx, avx512, avxvnni, avx2 or none"):
        find_cpu()


def test_without_native_kernels_pytorch_answers_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    native = LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="4MiB")
    monkeypatch.setenv(ISA_VARIABLE, "none")
    torch = LLM("demo", dtype="float32", max_model_len=64, kv_cache_memory="4MiB")
    assert "HASTEN_CPU_ISA=none" in torch.describe()["kernels"] and "native" in native.describe()["kernels"]
    answers = [llm.generate("def add(a, b):", GREEDY)[0].outputs[0].token_ids for llm in (native, torch)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"kv_cache_dtype": "int8"}, {"backend": "cpu"}])
def test_what_needs_native_kernels_is_refused_without_them(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "none")
    with pytest.raises(InvalidOption, match=f"{next(iter(options))} .*native CPU kernels.*HASTEN_CPU_ISA=none"):
        LLM("demo", **options)


def test_a_number_of_threads_below_one_is_refused() -> None:
    with pytest.raises(InvalidOption, match="threads is out of range: got 0"):
        LLM("demo", threads=0)


def test_threads_are_as_many_as_asked_for() -> None:
    before = len(os.listdir("/proc/self/task"))
    cpu = find_cpu(threads=5)
    assert not isinstance(cpu, str) and len(os.listdir("/proc/self/task")) == before + 4
    del cpu
    assert len(os.listdir("/proc/self/task")) == before
