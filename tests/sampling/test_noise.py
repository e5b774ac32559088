"""The noise is one independent Gumbel number per (seed, sequence, position, token)."""

from __future__ import annotations

import math
import random

import pytest
import torch
from tests.sampling.chi_square import MIN_P_VALUE, p_value
from tests.sampling.oracles import noise_bits_formula
from tests.sampling.rows import make_row
from torch import Tensor

from hasten.sampling import noise

NUM_DRAWS = 200_000
PROBS_V = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.009, 0.001])
AXES = ("seed", "sequence", "position")


def draw_along(axis: str) -> Tensor:
    """Return tokens drawn with keys that differ in one part only."""
    seeds, sequences, positions = (torch.arange(NUM_DRAWS) if axis == name else torch.full((NUM_DRAWS,), 3) for name in AXES)
    noise_RV = noise.gumbel_noise(seeds, sequences, positions, torch.arange(len(PROBS_V)))
    return (PROBS_V.double().log() + noise_RV).argmax(dim=1)


@pytest.mark.parametrize("axis", AXES)
def test_samples_follow_the_probabilities_along_every_part_of_the_key(axis: str) -> None:
    tokens = draw_along(axis)
    assert p_value(tokens, PROBS_V) > MIN_P_VALUE
    # Neighbours in the key are independent: pairs of draws follow the product.
    pairs = tokens[0::2] * len(PROBS_V) + tokens[1::2]
    assert p_value(pairs, torch.outer(PROBS_V, PROBS_V).flatten()) > MIN_P_VALUE


@pytest.mark.parametrize("axis", AXES)
def test_noise_without_a_part_of_the_key_is_caught(axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = noise.streams

    def streams_without_axis(*parts: Tensor) -> Tensor:
        return streams(*(part * 0 if name == axis else part for name, part in zip(AXES, parts, strict=True)))

    monkeypatch.setattr(noise, "streams", streams_without_axis)
    assert p_value(draw_along(axis), PROBS_V) < MIN_P_VALUE


def test_the_wrong_distribution_is_caught() -> None:
    tokens = draw_along("position")
    assert p_value(tokens, PROBS_V.roll(1)) < MIN_P_VALUE
    assert p_value(tokens, PROBS_V + torch.tensor([0.01, -0.01, 0, 0, 0, 0, 0, 0])) < MIN_P_VALUE


def test_tokens_of_one_row_are_uniform_and_independent() -> None:
    bits = noise.noise_bits(torch.tensor(11), torch.arange(1 << 18))
    for shift in (44, 22, 0):  # the highest, some middle and the lowest bits
        byte = (bits >> shift) & 0xFF
        assert p_value(byte, torch.ones(256)) > MIN_P_VALUE
        assert p_value((byte[:-1] >> 3) * 32 + (byte[1:] >> 3), torch.ones(1024)) > MIN_P_VALUE


def test_known_values_of_splitmix64() -> None:
    """The first outputs of the published generator, started at 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert noise.noise_bits(torch.tensor(1234567), torch.arange(5)).tolist() == [value >> 12 for value in published]


def test_the_bits_are_those_of_python_integers() -> None:
    rng = random.Random(0)
    rows = [make_row(rng, 100, seed=seed) for seed in (0, 1, 2**63 - 1, *(rng.randrange(2**63) for _ in range(20)))]
    keys = [(row.params.seed, row.sequence_index, row.position) for row in rows]
    token_V = torch.tensor([*range(300), 151_935])
    bits_RV = noise.noise_bits(noise.streams(*torch.tensor(keys).T).unsqueeze(1), token_V)
    assert bits_RV.tolist() == [[noise_bits_formula(row, token) for token in token_V.tolist()] for row in rows]


def test_the_noise_is_that_of_the_formula_and_finite_at_its_ends() -> None:
    bits = torch.tensor([0, 1, 1 << 51, (1 << 52) - 1])
    expected = [-math.log(-math.log((k + 0.5) / 2**52)) for k in bits.tolist()]
    assert noise.gumbel_from_bits(bits).tolist() == pytest.approx(expected, rel=1e-12)
    assert noise.gumbel_from_bits(bits).isfinite().all()


def test_gathered_tokens_have_the_noise_of_the_full_vocabulary() -> None:
    seeds, sequences, positions = torch.tensor([[0, 2**63 - 1, 17], [0, 63, 1], [0, 1_000_000, 5]])
    full_RV = noise.gumbel_noise(seeds, sequences, positions, torch.arange(500))
    token_RK = torch.randint(0, 500, (3, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.gumbel_noise(seeds, sequences, positions, token_RK), full_RV.gather(1, token_RK))
    assert full_RV.dtype == torch.float64
    for i in range(3):
        alone_1V = noise.gumbel_noise(seeds[i : i + 1], sequences[i : i + 1], positions[i : i + 1], torch.arange(500))
        assert torch.equal(alone_1V[0], full_RV[i])
