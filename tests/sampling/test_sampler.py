"""Mixed batches sample the tokens of brute force, and an unusable row affects no other."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.sampling.chi_square import MIN_P_VALUE, p_value
from tests.sampling.oracles import VOCAB
from tests.sampling.rows import make_logits, make_row
from tests.sampling.test_chain import mixed_row
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.generation.logits_process import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from hasten.core.sampling_params import SamplingParams
from hasten.sampling import gumbel_argmax
from hasten.sampling.chain import Chain
from hasten.sampling.noise import gumbel_noise
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler, rows_are_finite


def token_ids(logits_RV: Tensor, rows: list[SamplingRow], sampler: Sampler | None = None) -> list[int | None]:
    return [None if token is None else token.token_id for token in (sampler or Sampler()).sample(logits_RV, rows)]


def rows_of_every_kind(rng: random.Random, num: int) -> list[SamplingRow]:
    """Return greedy and sampling rows, with and without processors, with and without logprobs."""
    rows = [mixed_row(rng, rng.choice((0.0, 0.2, 0.6))) for _ in range(num)]
    overrides = [{"logprobs": rng.choice((None, 0, 3, 20)), **rng.choice(({}, {"temperature": 0.0}))} for _ in rows]
    return [row._replace(params=row.params.replace(**override)) for row, override in zip(rows, overrides, strict=True)]


def brute_force(logits_V: Tensor, row: SamplingRow) -> int:
    """Return the token that one row alone takes from the full vocabulary."""
    values_V = Chain().process(logits_V[None], [row])
    if not row.params.greedy:
        seed, sequence, position = (torch.tensor([part]) for part in (row.params.seed, row.sequence_index, len(row.token_ids)))
        values_V = Chain().warp(values_V, [row]).double() + gumbel_noise(seed, sequence, position, torch.arange(len(logits_V)))
    return int(values_V[0].argmax())


@pytest.mark.parametrize("seed", range(5))
def test_mixed_batches_equal_brute_force_in_any_order_and_alone(seed: int) -> None:
    rng = random.Random(seed)
    rows = rows_of_every_kind(rng, 40)
    logits_RV = make_logits("plain", 40, VOCAB, seed)
    before_RV = logits_RV.clone()
    expected = [brute_force(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]
    assert token_ids(logits_RV, rows) == expected
    order = rng.sample(range(40), 40)
    assert token_ids(logits_RV[order], [rows[i] for i in order]) == [expected[i] for i in order]
    assert [token_ids(logits_RV[i : i + 1], [row])[0] for i, row in enumerate(rows)] == expected
    assert torch.equal(logits_RV, before_RV)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_k": 5000}, {"min_p": 0.2}])
def test_a_large_vocabulary_equals_brute_force(settings: dict[str, Any]) -> None:
    rng = random.Random(1)
    rows = [make_row(rng, 70_000, **settings) for _ in range(7)]
    logits_RV = make_logits("plain", 7, 70_000)
    assert token_ids(logits_RV, rows) == [brute_force(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]


@pytest.mark.parametrize("share", [-1.0, 2.0])
def test_sparse_and_dense_rows_sample_the_same_tokens(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    rows = [mixed_row(rng, 0.4) for _ in range(60)]
    logits_RV = make_logits("masked", 60, VOCAB)
    expected = [brute_force(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]
    monkeypatch.setattr(gumbel_argmax, "SPARSE_SHARE", share)
    assert token_ids(logits_RV, rows) == expected
    # Without noise every token ties, and the lowest id wins.
    monkeypatch.setattr(gumbel_argmax, "gumbel_from_bits", lambda bits: bits.double() * 0)
    assert token_ids(torch.zeros(2, VOCAB), [make_row(rng, VOCAB), make_row(rng, VOCAB, logit_bias={0: -1.0})]) == [0, 1]


@pytest.mark.parametrize(
    "settings, num_kept",
    [({}, 8), ({"top_k": 1}, 1), ({"top_k": 4}, 4), ({"top_p": 0.7, "temperature": 1.0}, 3), ({"temperature": 2.0}, 8)],
)
def test_sampled_tokens_follow_the_softmax(settings: dict[str, Any], num_kept: int) -> None:
    probs_V = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.009, 0.001])
    params = SamplingParams(seed=12, **settings)
    rows = [SamplingRow(params, range(position), 1, (), 0) for position in range(1, 60_001)]
    tokens = torch.tensor(token_ids(probs_V.log().expand(len(rows), -1), rows))
    weights_V = probs_V[:num_kept] ** (1 / params.temperature)
    assert int(tokens.max()) < num_kept
    if num_kept > 1:
        assert p_value(tokens, weights_V) > MIN_P_VALUE
        assert p_value(tokens, weights_V.flip(0)) < MIN_P_VALUE


@pytest.mark.parametrize("change", [{"seed": 8}, {"sequence_index": 1}, {"position": 1}])
def test_another_seed_sequence_or_position_draws_another_stream(change: dict[str, int]) -> None:
    def stream(seed: int = 7, sequence_index: int = 0, position: int = 0) -> list[int | None]:
        params = SamplingParams(seed=seed)
        rows = [SamplingRow(params, range(position + 10 + 2 * i), 3, (), sequence_index) for i in range(200)]
        return token_ids(torch.zeros(200, 1000), rows)

    num_same = sum(a == b for a, b in zip(stream(), stream(**change), strict=True))
    assert stream() == stream()
    assert num_same < 5  # 0.2 expected by chance


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits_RV = torch.zeros(3, VOCAB)
    logits_RV[1, [9, 40]] = 1.0
    logits_RV[2, [9, 40]] = 1.0
    greedy = SamplingParams(temperature=0)
    rows = [SamplingRow(params, [1], 1, (), 0) for params in (greedy, greedy, greedy.replace(logit_bias={9: -5.0}))]
    assert token_ids(logits_RV, rows) == [0, 9, 40]


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    rng = random.Random(9)
    rows = rows_of_every_kind(rng, 60)
    logits_RV = make_logits("plain", 60, VOCAB)
    raw_RV = logits_RV.log_softmax(dim=1)
    sampled = Sampler().sample(logits_RV, rows)
    for row, token, raw_V in zip(rows, sampled, raw_RV, strict=True):
        assert token is not None
        if row.params.logprobs is None:
            assert token.logprob is None
            continue
        assert token.logprob is not None
        assert token.logprob.token_id == token.token_id
        assert token.logprob.logprob == float(raw_V[token.token_id])
        assert token.logprob.rank == 1 + int((raw_V > raw_V[token.token_id]).sum())
        best = raw_V.argsort(descending=True)[: row.params.logprobs].tolist()
        assert token.logprob.top == tuple((i, float(raw_V[i])) for i in best)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_an_unusable_row_affects_no_other(value: float, everywhere: bool) -> None:
    rng = random.Random(4)
    for seed in range(5):
        rows = rows_of_every_kind(rng, 12)
        logits_RV = make_logits("plain", 12, VOCAB, seed)
        clean = token_ids(logits_RV, rows)
        bad = rng.sample(range(12), 3)
        for i in bad:
            logits_RV[i, slice(None) if everywhere else slice(30, 31)] = value
        still_usable = value == -float("inf") and not everywhere
        result = token_ids(logits_RV, rows)
        assert [result[i] for i in range(12) if i not in bad] == [clean[i] for i in range(12) if i not in bad]
        assert still_usable or all(result[i] is None for i in bad)
        assert not still_usable or None not in result


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_stays_unusable_if_a_mask_hides_its_value(value: float) -> None:
    params = SamplingParams(seed=1, allowed_token_ids=(2, 3))
    logits_RV = make_logits("plain", 2, VOCAB)
    logits_RV[1, 50] = value
    rows = [SamplingRow(params, [1], 1, (), 0)] * 2
    assert token_ids(logits_RV, rows) == [brute_force(logits_RV[0], rows[0]), None]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_fully_masked_row_is_unusable(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1, allowed_token_ids=(2,), min_tokens=5)
    rows = [SamplingRow(params, [1], 1, (2,), 0), SamplingRow(params.replace(min_tokens=0), [1], 1, (2,), 0)]
    assert token_ids(make_logits("plain", 2, VOCAB), rows) == [None, 2]


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def operation_names(num_rows: int, **settings: Any) -> list[str]:
    rows = [make_row(random.Random(i), VOCAB, **settings) for i in range(num_rows)]
    logits_RV = make_logits("plain", num_rows, VOCAB)
    with Operations() as recorded:
        Sampler().sample(logits_RV, rows)
    return recorded.names


def test_plain_greedy_rows_cost_one_argmax_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("the chain was called")

    monkeypatch.setattr(Chain, "process", fail)
    monkeypatch.setattr(Chain, "warp", fail)
    assert operation_names(1, temperature=0.0) == operation_names(50, temperature=0.0)
    assert len(operation_names(50, temperature=0.0)) <= 1  # a view for the argmax


def test_log_softmax_is_computed_only_for_logprobs() -> None:
    assert not any("softmax" in name for name in operation_names(3, temperature=0.7, top_k=5))
    assert any("log_softmax" in name for name in operation_names(3, temperature=0.7, top_k=5, logprobs=0))


def test_beam_scores_apply_processors_after_log_softmax_as_transformers_does() -> None:
    rng = random.Random(6)
    rows = [make_row(rng, VOCAB, beam_width=2, repetition_penalty=1.7, no_repeat_ngram_size=2) for _ in range(5)]
    logits_RV = make_logits("plain", 5, VOCAB)
    hf: Any = LogitsProcessorList([NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.7)])
    raw_RV = logits_RV.log_softmax(dim=1)
    expected_RV = torch.cat([hf(torch.tensor([row.token_ids]), raw_RV[i : i + 1]) for i, row in enumerate(rows)])
    torch.testing.assert_close(Sampler().beam_logprobs(logits_RV, rows), expected_RV)
    processed_first_RV = Chain().process(logits_RV, rows).log_softmax(dim=1)
    assert not torch.allclose(processed_first_RV, expected_RV)


def test_rows_are_finite_tells_which_beams_are_usable() -> None:
    rows = [make_row(random.Random(i), VOCAB, beam_width=2, allowed_token_ids=(1, 2)) for i in range(4)]
    logits_RV = make_logits("plain", 4, VOCAB)
    logits_RV[1, 50] = float("nan")
    logits_RV[2, 50] = float("inf")
    logits_RV[3, [1, 2]] = -float("inf")
    assert rows_are_finite(Sampler().beam_logprobs(logits_RV, rows)) == [True, False, False, False]


def test_no_rows() -> None:
    assert Sampler().sample(torch.empty(0, VOCAB), []) == []
