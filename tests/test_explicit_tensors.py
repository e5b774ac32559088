"""No tensor follows PyTorch's default dtype or device, and one file alone hands the address of a tensor to native code.

Training computes on any device and in the user's own process, so it is not held to this.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "hasten"
FACTORIES = {"tensor", "empty", "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "randint", "as_tensor"}
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if "training" not in path.relative_to(SOURCE).parts]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def is_implicit(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name) or function.value.id != "torch":
        return False
    return function.attr in FACTORIES and not {"dtype", "device"} <= {keyword.arg for keyword in call.keywords}


def test_tensors_are_made_with_an_explicit_dtype_and_device() -> None:
    implicit = [f"{path.relative_to(SOURCE)}:{call.lineno}" for path in FILES for call in calls(path) if is_implicit(call)]
    assert not implicit
    assert is_implicit(next(iter(calls_of("torch.zeros(3, dtype=torch.float32)"))))


def calls_of(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def test_one_file_takes_the_address_of_tensors_for_native_code() -> None:
    users = {str(path.relative_to(SOURCE)) for path in FILES if ".data_ptr()" in path.read_text()}
    # The runner only compares two addresses.
    assert users == {"ops/cpu/native_tensor.py", "runners/native_runner.py"}
