"""The noise of ``hasten.sampling.noise`` where only a few of its numbers matter: the same bits from numpy's unsigned integers.

A call on a few numbers costs a fraction of torch's, and the tokens of a whole vocabulary whose noise is large are found without
computing the noise of the others: it rises with the bits, so the bits are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hasten.sampling import noise
from hasten.sampling.row import SamplingRow

Unsigned = NDArray[np.uint64]
Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

MASK = (1 << 64) - 1
A, B, C, MIX_1, MIX_2 = (constant & MASK for constant in (noise.A, noise.B, noise.C, noise.MIX_1, noise.MIX_2))
_A, _MIX_1, _MIX_2, _ONE = np.uint64(A), np.uint64(MIX_1), np.uint64(MIX_2), np.uint64(1)
_12, _27, _30, _31 = (np.uint64(by) for by in (12, 27, 30, 31))


def streams_of(rows: Sequence[SamplingRow]) -> Unsigned:
    """``streams`` of each row [R]; every row has a seed."""
    return np.array([_stream(row) for row in rows], dtype=np.uint64)


def token_bits(streams: Unsigned, token_ids: Ints) -> Ints:
    """``noise_bits``; the arguments broadcast."""
    mixed = token_ids.astype(np.uint64)
    mixed += _ONE
    mixed *= _A
    mixed = _mixed(mixed + streams)
    return ((mixed ^ (mixed >> _31)) >> _12).view(np.int64)


def noise_of(bits: Ints) -> Doubles:
    """``gumbel_of``, whose logarithms are torch's."""
    found: Doubles = noise.gumbel_of(torch.from_numpy(bits)).numpy()
    return found


def louder_tokens(stream_R: Unsigned, num_tokens: int, uniform_R: Doubles) -> list[Ints]:
    """For each row every token whose uniform number is at least the given one, and perhaps some just below."""
    step_V = np.arange(1, num_tokens + 1, dtype=np.uint64)
    step_V *= _A
    # The last step of the mixing leaves the upper 31 bits alone, and they decide.
    least_R = np.maximum(uniform_R * 2.0**31 - 1, 0).astype(np.uint64) << np.uint64(33)
    return [np.flatnonzero(_mixed(step_V + stream) >= least) for stream, least in zip(stream_R, least_R, strict=True)]


def _stream(row: SamplingRow) -> int:
    assert row.params.seed is not None, "the engine gives every sampling request a seed"
    stream = _mix(row.params.seed + A)
    stream = _mix(stream + (row.sequence_index + 1) * B)
    return _mix(stream + (row.position + 1) * C)


def _mix(z: int) -> int:
    """SplitMix64's finaliser of one number, modulo 2**64."""
    z &= MASK
    z = (z ^ (z >> 30)) * MIX_1 & MASK
    z = (z ^ (z >> 27)) * MIX_2 & MASK
    return z ^ (z >> 31)


def _mixed(z: Unsigned) -> Unsigned:
    """The same of many, but for the last step. Writes to its argument and returns it."""
    shifted = z >> _30
    z ^= shifted
    z *= _MIX_1
    np.right_shift(z, _27, out=shifted)
    z ^= shifted
    z *= _MIX_2
    return z
