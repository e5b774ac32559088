"""Numbers beyond the kernels' limits are refused by name, and no number is cut off on its way to native code."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype, find_cpu
from hasten.ops.cpu.kv import NativeKv, kv_block_bytes
from hasten.ops.cpu.library import NativeLibrary, NotFinite, native_library
from hasten.ops.cpu.matrix import Matrix, Weights
from hasten.ops.cpu.program import Program

WRAPPED = [2**32 + 16, 2**31, 2**63, 2**64 + 16, 0, -1]  # 2**32 + 16 is 16 in 32 bits


def library() -> NativeLibrary:
    loaded = native_library()
    assert isinstance(loaded, NativeLibrary), loaded
    return loaded


@pytest.mark.parametrize("number", WRAPPED)
def test_sizes_out_of_range_are_refused_by_name(cpu: Cpu, number: int) -> None:
    kv = NativeKv(cpu, 2, 16)
    for refused in (lambda: NativeKv(cpu, 2, number), lambda: kv_block_bytes(cpu, Dtype.FLOAT32, 1, 8, number)):
        with pytest.raises(InvalidOption, match=r"block_size is out of range.*allowed: a whole number from 1 to"):
            refused()
    with pytest.raises(InvalidOption, match="max_num_batched_tokens is out of range"):
        Program(cpu, kv, number)
    with pytest.raises(InvalidOption, match="threads is out of range"):
        Cpu(library(), cpu.isa, number)


@pytest.mark.parametrize("number", WRAPPED)
def test_native_code_refuses_what_python_would_let_through(number: int) -> None:
    native = library()
    refusals = (AssertionError, ctypes.ArgumentError)
    for arguments in (("cpu", b"avx2", number), ("kv", 4, number), ("kv", number if number else -5, 16)):
        with pytest.raises(refusals):
            native.new(*arguments)
    cpu = Cpu(native, None, 1)
    weights, kv = Weights(cpu), NativeKv(cpu, 2, 16)
    for shape in ((number, 8), (8, number)):
        with pytest.raises(refusals):
            native.new("matrix", weights.handle, Dtype.FLOAT32, *shape)
    with pytest.raises(refusals):
        native.new("program", cpu.handle, kv.handle, number)
    with pytest.raises(refusals):
        native.kv_add_layer(kv.handle, 0, Dtype.FLOAT32, 1, number)


def test_impossible_threads_are_refused_at_once() -> None:
    begin = time.process_time()
    with pytest.raises(InvalidOption, match="threads is out of range: got 2147483647; allowed: a whole number from 1 to 4,096"):
        find_cpu(threads=2**31 - 1)
    assert time.process_time() - begin < 1


def test_threads_that_the_system_refuses_are_an_error_and_leave_none_behind() -> None:
    """Once they ended the process: an exception crossed the C interface."""
    program = (
        "import os, resource\n"
        "from hasten.core.errors import CapacityError\n"
        "from hasten.ops.cpu.cpu import find_cpu\n"
        "find_cpu(1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))\n"
        "try:\n    find_cpu(500)\n"
        "except CapacityError as error:\n    print(error, len(os.listdir('/proc/self/task')))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    message, _, threads = result.stdout.strip().rpartition(" ")
    assert message.startswith(
        "the system refuses the threads of the native kernels: got 500 threads (the system refuses to start a"
    )
    assert threads == "1"


def test_matrices_and_heads_beyond_the_kernels_are_refused_with_shape_and_bound(cpu: Cpu) -> None:
    weights, most = Weights(cpu), cpu.library.limits
    Matrix(weights, 16, most.int8_inputs, Dtype.INT8, int8_activations=True)
    with pytest.raises(UnsupportedModel, match=r"16 outputs with 131,073 inputs \(with int8 activations at most 131,072\)"):
        Matrix(weights, 16, most.int8_inputs + 1, Dtype.INT4, int8_activations=True)
    Matrix(weights, 16, most.int8_inputs + 1, Dtype.INT4)  # weight-only
    kv = NativeKv(cpu, 1, 16)
    kv.add_layer(0, Dtype.FLOAT32, 1, most.head_dim)
    for refused in (lambda: kv.add_layer(0, Dtype.FLOAT32, 1, 513), lambda: kv_block_bytes(cpu, Dtype.INT8, 1, 513, 16)):
        with pytest.raises(UnsupportedModel, match=r"heads of 513 dimensions \(at most 512\)"):
            refused()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [*DTYPES.values(), Dtype.INT8, Dtype.INT4])
def test_weights_that_are_not_finite_are_refused_in_every_format(cpu: Cpu, dtype: Dtype, number: float) -> None:
    for source in (torch.float32, torch.bfloat16, torch.float16):
        weight = torch.ones(70, 130, dtype=source)
        Matrix(Weights(cpu), 70, 130, dtype).pack(weight, 0)
        weight[69, 129] = number
        with pytest.raises(NotFinite):
            Matrix(Weights(cpu), 70, 130, dtype).pack(weight, 0)


def test_the_widest_quantised_products_are_exact(cpu: Cpu) -> None:
    """Sums pass 2**31 on the way and end within it."""
    inputs = cpu.library.limits.int8_inputs
    x = torch.ones(10, inputs)
    for dtype in (Dtype.INT8, Dtype.INT4):
        matrix = Matrix(Weights(cpu), 20, inputs, dtype, int8_activations=True)
        matrix.pack(torch.ones(20, inputs), 0)
        for rows in (1, 10):
            torch.testing.assert_close(matrix.multiply(x[:rows], None), torch.full((rows, 20), float(inputs)), rtol=1e-6, atol=0)


def test_the_documented_limits_are_those_of_the_kernels() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "run-fast-on-a-cpu.md").read_text()
    most = library().limits
    for number in (most.head_dim, most.int8_inputs, most.features, most.threads, most.block_size):
        assert f"{number:,}" in page, number
