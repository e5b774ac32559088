"""The fixture ``cpu``: each instruction set that this machine supports, with two threads."""

from __future__ import annotations

import pytest

from hasten.ops.cpu.cpu import Cpu, supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cpu" in metafunc.fixturenames:
        library = native_library()
        isas = supported_isas(library) if isinstance(library, NativeLibrary) else ["no native library"]
        metafunc.parametrize("cpu", isas, indirect=True)


@pytest.fixture
def cpu(request: pytest.FixtureRequest) -> Cpu:
    library = native_library()
    assert isinstance(library, NativeLibrary), library
    return Cpu(library, request.param, 2)
