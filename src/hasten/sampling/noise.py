"""Counter-based Gumbel noise: a pure function of (seed, sequence, position, token).

The token with the largest sum of log-probability and noise is a sample of the distribution (the Gumbel-max trick: Gumbel,
1954; Maddison et al., 2014, arXiv 1411.0030). A drafter that adds the same noise to its own logits mostly proposes the same
sample (arXiv 2408.07978).

The key is mixed one part at a time. mix() is the finaliser of SplitMix64 (Steele et al., 2014, doi 10.1145/2660193.2660195),
a bijection of 64 bits. Products and sums are modulo 2**64::

    stream   = mix(mix(mix(seed + A) + (sequence + 1) · B) + (position + 1) · C)       one per row
    bits     = mix(stream + (token + 1) · A)                                           SplitMix64 started at ``stream``
    uniform  = (top 52 bits of bits + 1/2) / 2**52                                     exact in float64, in (0, 1)
    noise    = -log(-log(uniform))

Two positions of one sequence, or two sequences of one seed, therefore never share a stream.
"""

from __future__ import annotations

from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned number."""
    return value - (1 << 64) if value >= 1 << 63 else value


# A is SplitMix64's increment: 2**64 over the golden ratio. B and C are odd numbers of the same form for two and three
# dimensions, from the plastic number and its successor (Roberts, 2018).
A = _signed(0x9E3779B97F4A7C15)
B = _signed(0xC13FA9A902A6328F)
C = _signed(0xD1B54A32D192ED03)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def gumbel_noise(seeds: Tensor, sequence_indices: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Return the noise of each row's tokens [R, V] or [R, K], float64.

    ``seeds``, ``sequence_indices`` and ``positions`` are int64 [R]. ``token_ids`` is int64: [V], shared by all rows, or [R, K].
    """
    stream_R1 = streams(seeds, sequence_indices, positions).unsqueeze(1)
    return gumbel_from_bits(noise_bits(stream_R1, token_ids))


def streams(seeds: Tensor, sequence_indices: Tensor, positions: Tensor) -> Tensor:
    """Return one stream per row [R], int64."""
    stream_R = _mix_(seeds + A)
    stream_R = _mix_(stream_R + (sequence_indices + 1) * B)
    return _mix_(stream_R + (positions + 1) * C)


def noise_bits(streams: Tensor, token_ids: Tensor) -> Tensor:
    """Return 52 random bits for each token, an int64 in [0, 2**52). The arguments broadcast."""
    return _shift_right(_mix_((token_ids + 1) * A + streams), 12)


def gumbel_from_bits(bits: Tensor) -> Tensor:
    """Return the noise, float64 in (-3.7, 36.8), which ascends with the bits."""
    return bits.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Return the logical shift, which fills with zeros whatever the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix_(z: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser in place and return the argument."""
    z = z.bitwise_xor_(_shift_right(z, 30)).mul_(MIX_1)
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(MIX_2)
    return z.bitwise_xor_(_shift_right(z, 31))
