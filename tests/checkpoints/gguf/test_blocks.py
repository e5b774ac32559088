"""Blocks decode to what the ``gguf`` package gives, bit for bit, for random bytes and for every code and scale."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from tests.gguf_files import BLOCK_TYPES, decode, encode

from hasten.checkpoints.gguf.blocks import BLOCK_FORMATS
from hasten.layers.formats.stored_matrix import GroupedRows

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # bytes of the float16 fields; else 0


def random_blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Return random bytes with finite scales of either sign, uint8 [count, B]."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]), dtype=np.uint8)
    for start in HALVES.get(kind, (0,)):
        exponents = rng.uniform(-24, 15, (count, 1))
        values = (rng.choice((-1, 1), (count, 1)) * 2.0**exponents).astype(np.float16)
        raw[:, start : start + 2] = np.where(np.isfinite(values), values, np.float16(1)).astype(np.float16).view(np.uint8)
    return raw


def rows_of(kind: str, raw: np.ndarray) -> GroupedRows:
    """Decode [O, bytes of a row]."""
    block = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    return BLOCK_FORMATS[kind].rows(torch.from_numpy(raw.reshape(-1, block)), len(raw))


def bits_of(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("blocks_per_row", [1, 3])
def test_random_bytes_equal_the_gguf_package_bit_for_bit(kind: str, blocks_per_row: int) -> None:
    raw = random_blocks(kind, 600).reshape(600 // blocks_per_row, -1)
    expected = quants.dequantize(raw, GGMLQuantizationType[kind])
    assert np.array_equal(bits_of(rows_of(kind, raw).dequantize().numpy()), bits_of(expected))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_rows_have_the_form_that_the_scheme_describes(kind: str) -> None:
    spec, rows = BLOCK_FORMATS[kind].spec, rows_of(kind, random_blocks(kind, 500).reshape(250, -1))
    weights = 2 * gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    assert spec.scheme == kind
    assert rows.codes_OI.dtype == torch.uint8
    assert rows.codes_OI.shape == (250, weights)
    assert rows.codes_OI.unique().tolist() == list(range(2**spec.bits))
    assert rows.group_size == spec.group_size == (16 if kind == "Q6_K" else 32)
    assert rows.scales_OG.shape == (250, weights // rows.group_size)
    assert rows.scales_OG.dtype == torch.float32
    if spec.has_offsets:
        assert rows.offsets_OG is not None
        assert rows.offsets_OG.shape == rows.scales_OG.shape
    else:
        assert rows.offsets_OG is None
        assert rows.zeros == spec.zero == {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q6_K": 32}[kind]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_encoded_weights_come_back(kind: str) -> None:
    """The encoders of the tests and of the package are written from the layouts, not from the decoders."""
    values = np.random.default_rng(3).normal(size=(8, 512)).astype(np.float32)
    raw = encode(values, kind)
    weights = rows_of(kind, raw).dequantize().numpy()
    steps = {"Q4_0": 0.5, "Q4_1": 0.3, "Q5_0": 0.2, "Q5_1": 0.12, "Q8_0": 0.02, "Q4_K": 0.25, "Q5_K": 0.12, "Q6_K": 0.08}
    assert np.abs(weights - values).max() < steps[kind]
    assert np.array_equal(weights, decode(raw, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_of_a_mapped_file_may_lie_at_odd_addresses(kind: str) -> None:
    raw = random_blocks(kind, 1)
    shifted = torch.cat((torch.zeros(1, dtype=torch.uint8), torch.from_numpy(raw[0])))[1:].view(1, -1)
    assert torch.equal(BLOCK_FORMATS[kind].rows(shifted, 1).dequantize(), rows_of(kind, raw).dequantize())
