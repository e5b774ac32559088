"""``find_writer``: every format of the options has a writer, by name."""

from __future__ import annotations

import pytest

from hasten.checkpoints.quantized.writers.find import find_writer, writer_names
from hasten.compress.quantize.options import FORMATS
from hasten.core.errors import InvalidOption


def test_every_format_has_a_writer() -> None:
    assert sorted(FORMATS) == list(writer_names())
    for name in FORMATS:
        assert type(find_writer(name)).__module__.rpartition(".")[2] == name.replace("-", "_")


@pytest.mark.parametrize("name", ["gguf", "base", "find", "compressed_tensors", "", "../gptq"])
def test_an_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="awq, compressed-tensors, fp8, gptq"):
        find_writer(name)
