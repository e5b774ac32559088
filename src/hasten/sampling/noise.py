"""Gumbel noise that is a pure function of (seed, sequence, position, token): nothing is drawn in an order, nothing is stored.

The token with the largest sum of log-probability and noise is a sample of the distribution (the Gumbel-max trick: Gumbel,
1954; Maddison et al., 2014, arXiv 1411.0030). A drafter that adds the same noise to its own logits guesses the same sample,
mostly (arXiv 2408.07978).

The key is built one part at a time, mix() being the finaliser of SplitMix64 (Steele et al., 2014, doi 10.1145/2660193.2660195),
a bijection of 64 bits, and every product and sum modulo 2**64::

    stream   = mix(mix(mix(seed + A) + (sequence + 1) · B) + (position + 1) · C)       one per row
    bits     = mix(stream + (token + 1) · A)                                           SplitMix64 started at ``stream``
    uniform  = (top 52 bits of bits + 1/2) / 2**52                                     exact in float64, in (0, 1)
    noise    = -log(-log(uniform))

Two positions of one sequence, or two sequences of one seed, therefore never share a stream.
"""

from __future__ import annotations

from torch import Tensor


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


# A is SplitMix64's increment (2**64 over the golden ratio), B and C its companions for two and three dimensions: odd numbers
# of the same make, from the plastic number and its successor (Roberts, 2018).
A = _signed(0x9E3779B97F4A7C15)
B = _signed(0xC13FA9A902A6328F)
C = _signed(0xD1B54A32D192ED03)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def gumbel(seeds: Tensor, sequence_indices: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """The noise of each row's tokens [R, V] or [R, K], float64.

    ``seeds``, ``sequence_indices`` and ``positions`` are int64 [R]; ``token_ids`` is int64 [V], the same for all rows, or [R, K].
    """
    stream_R1 = streams(seeds, sequence_indices, positions).unsqueeze(1)
    return gumbel_of(noise_bits(stream_R1, token_ids))


def streams(seeds: Tensor, sequence_indices: Tensor, positions: Tensor) -> Tensor:
    """One stream per row [R], int64."""
    stream_R = _mix_(seeds + A)
    stream_R = _mix_(stream_R + (sequence_indices + 1) * B)
    return _mix_(stream_R + (positions + 1) * C)


def noise_bits(streams: Tensor, token_ids: Tensor) -> Tensor:
    """52 random bits of each token, as an int64 in [0, 2**52); the arguments broadcast."""
    return _shifted(_mix_((token_ids + 1) * A + streams), 12)


def gumbel_of(bits: Tensor) -> Tensor:
    """The noise, float64. The larger the bits, the larger the noise; it lies in (-3.7, 36.8)."""
    return bits.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right: zeros come in, whatever the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser. Writes to its argument and returns it."""
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(MIX_1)
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(MIX_2)
    return z.bitwise_xor_(_shifted(z, 31))
