"""The chain applies processors in the documented order; a row's result depends on that row alone."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sampling.oracles import ORACLES, VOCAB
from tests.sampling.rows import assert_same, make_logits, make_row
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.chain import PROCESSORS, WARPERS, Chain, registered_name
from hasten.sampling.row import SamplingRow

PROCESSOR_NAMES = [registered_name(processor) for processor in PROCESSORS[1:]]  # guides stand first; tests/sampling/guides
WARPER_NAMES = [registered_name(warper) for warper in WARPERS]


def mixed_row(rng: random.Random, share: float, names: Sequence[str] = PROCESSOR_NAMES + WARPER_NAMES) -> SamplingRow:
    """Return a row with each named setting at probability ``share``; enough tokens stay allowed."""
    row_settings: dict[str, Any] = {}
    for name in names:
        if rng.random() < share:
            row_settings |= ORACLES[name].settings(rng)
    if "allowed_token_ids" in row_settings:
        row_settings["allowed_token_ids"] = tuple(range(20, 80))
    return make_row(rng, VOCAB, **row_settings)


def expected(logits_1V: Tensor, row: SamplingRow, order: list[str]) -> Tensor:
    """Return the logits after the oracles of the row's settings, one after the other."""
    applies = {registered_name(p): p.applies(row.params) for p in PROCESSORS + WARPERS}
    for name in order:
        if applies[name]:
            params = row.params
            if name == "presence_penalty":
                params = params.replace(frequency_penalty=0.0)
            elif name == "frequency_penalty":
                params = params.replace(presence_penalty=0.0)
            single = SamplingRow(params, row.token_ids, row.num_prompt_tokens, row.eos_token_ids, row.sequence_index)
            logits_1V = ORACLES[name].processor(single)(torch.tensor([row.token_ids]), logits_1V.clone())
    return logits_1V


def compare(chain: Chain) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        rows = [
            mixed_row(rng, share, names)
            for share, names in ((0.3, PROCESSOR_NAMES + WARPER_NAMES), (0.7, PROCESSOR_NAMES), (0.7, WARPER_NAMES)) * 5
        ]
        logits_RV = make_logits("plain", len(rows), VOCAB, seed)
        ours_RV = chain.warp(chain.process(logits_RV, rows), rows)
        assert_same(
            ours_RV, torch.cat([expected(logits_RV[i : i + 1], row, PROCESSOR_NAMES + WARPER_NAMES) for i, row in enumerate(rows)])
        )


def test_mixed_batches_equal_transformers_in_the_documented_order() -> None:
    compare(Chain())


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(Chain(PROCESSORS[:6], (*WARPERS, *PROCESSORS[6:])), id="penalties after temperature"),
        pytest.param(Chain((*PROCESSORS[:5], *PROCESSORS[6:], PROCESSORS[5])), id="bias after penalties"),
        pytest.param(Chain(warpers=(WARPERS[0], WARPERS[2], WARPERS[1], *WARPERS[3:])), id="top-p before top-k"),
        pytest.param(Chain(warpers=(*WARPERS[1:], WARPERS[0])), id="temperature last"),
        pytest.param(Chain(PROCESSORS[:-1]), id="one left out"),
    ],
)
def test_another_order_is_caught(chain: Chain) -> None:
    with pytest.raises(AssertionError):
        compare(chain)


def test_the_order_is_the_documented_one() -> None:
    documented = SamplingParams.__doc__ or ""
    masks = ("structured_outputs", "allowed_token_ids", "min_tokens", "bad_words", "no_repeat_ngram")
    matches = [re.search(rf"\b{name}", documented) for name in masks]
    matches += [re.search(rf"\b{name}\b", documented) for name in ("logit_bias", "penalties", *WARPER_NAMES)]
    starts = [match.start() for match in matches if match]
    assert len(starts) == len(matches)
    assert starts == sorted(starts)
    assert [registered_name(PROCESSORS[0]), *PROCESSOR_NAMES[:5], *WARPER_NAMES] == [
        *("guided_tokens", "allowed_token_ids", "min_tokens", "bad_words", "no_repeat_ngram", "logit_bias"),
        *("temperature", "top_k", "top_p", "min_p", "typical_p"),
    ]


@given(st.integers(0, 2**32), st.permutations(range(8)), st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_a_row_is_bitwise_the_same_alone_and_anywhere_in_a_batch(seed: int, order: list[int], share: float) -> None:
    rng = random.Random(seed)
    rows = [mixed_row(rng, share) for _ in range(8)]
    logits_RV = make_logits("plain", 8, VOCAB, seed)
    chain = Chain()
    batch_RV = chain.warp(chain.process(logits_RV[order], [rows[i] for i in order]), [rows[i] for i in order])
    for position, i in enumerate(order):
        alone_1V = chain.warp(chain.process(logits_RV[i : i + 1], [rows[i]]), [rows[i]])
        assert torch.equal(batch_RV[position], alone_1V[0])


def test_the_logits_of_the_caller_are_unchanged() -> None:
    rng = random.Random(5)
    rows = [mixed_row(rng, 1.0), mixed_row(rng, 0.0), mixed_row(rng, 0.5)]
    logits_RV = make_logits("plain", 3, VOCAB)
    before_RV = logits_RV.clone()
    Chain().process(logits_RV, rows)
    Chain().warp(logits_RV, rows)
    Chain().process(logits_RV[:1], rows[:1])
    assert torch.equal(logits_RV, before_RV)


def test_rows_without_a_setting_are_not_passed_to_its_processor() -> None:
    batch_sizes: list[int] = []

    class TopKPlusOne:
        def applies(self, params):
            return params.top_k is not None

        def __call__(self, logits_RV, rows):
            batch_sizes.append(len(rows))
            assert logits_RV.shape == (len(rows), VOCAB)
            return logits_RV + 1

    rng = random.Random(2)
    rows = [make_row(rng, VOCAB, top_k=k) for k in (None, 3, None, 4)]
    logits_RV = make_logits("plain", 4, VOCAB)
    result_RV = Chain(processors=(TopKPlusOne(),)).process(logits_RV, rows)
    assert batch_sizes == [2]
    assert torch.equal(result_RV[[0, 2]], logits_RV[[0, 2]])
    assert torch.equal(result_RV[[1, 3]], logits_RV[[1, 3]] + 1)
    assert Chain(processors=(TopKPlusOne(),)).process(logits_RV[:1], rows[:1]).data_ptr() == logits_RV.data_ptr()
