"""Masks of guides in a batch: as a formula has them, beside every other setting, and for their own rows alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.sampling.rows import EOS, make_logits, make_row
from torch import Tensor

from hasten.core.errors import HastenError
from hasten.core.structured_outputs import StructuredOutputs
from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.sampling.chain import Chain
from hasten.sampling.guides.base import MaskWords
from hasten.sampling.native_token_selector import NativeTokenSelector
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler

VOCAB = 75  # no multiple of 32
FORM = StructuredOutputs(regex="a")


@dataclass
class SetGuide:
    """Allows the same tokens everywhere."""

    allowed: frozenset[int]
    forced: tuple[int, ...] = ()
    error: Exception | None = None

    def forced_tokens(self, token_ids: Sequence[int]) -> Sequence[int]:
        return self.forced

    def mask(self, token_ids: Sequence[int]) -> MaskWords | None:
        if self.error is not None:
            raise self.error
        if len(self.allowed) == VOCAB:
            return None
        bits = np.zeros((VOCAB + 31) // 32 * 32, dtype=np.uint8)
        bits[[*self.allowed]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        raise AssertionError("a sampler does not draft")

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        raise AssertionError("a sampler does not end an output")


def guided_row(draw: random.Random, guide: SetGuide, **settings: Any) -> SamplingRow:
    return make_row(draw, VOCAB, structured_outputs=FORM, **settings)._replace(guide=guide)


def random_guide(draw: random.Random) -> SetGuide:
    """Return a guide that allows one, few, many or all tokens, the first and the last one among them at times."""
    allowed = draw.sample(range(VOCAB), draw.choice((1, 3, 40, VOCAB)))
    return SetGuide(frozenset(allowed), (allowed[0],) if draw.random() < 0.2 else ())


def random_settings(draw: random.Random) -> dict[str, Any]:
    """Return settings of the processors: each is there or not."""
    choices: tuple[dict[str, Any], ...] = (
        {"allowed_token_ids": tuple(draw.sample(range(VOCAB), 60))},
        {"min_tokens": draw.choice((1, 99)), "max_tokens": 200},
        {"bad_words_ids": tuple((token,) for token in draw.sample(range(VOCAB), 5))},
        {"logit_bias": {token: draw.choice((-5.0, 5.0)) for token in draw.sample(range(VOCAB), 6)}},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7},
        {"frequency_penalty": -0.4},
        {"temperature": draw.choice((0.0, 0.5, 1.3))},
    )
    return {name: value for part in choices if draw.random() < 0.4 for name, value in part.items()}


def kept(row: SamplingRow) -> set[int]:
    """Return the tokens that guide and masks of a row leave."""
    params, tokens = row.params, set(range(VOCAB))
    if isinstance(row.guide, SetGuide):
        tokens &= set(row.guide.forced[:1]) or row.guide.allowed
    if params.allowed_token_ids is not None:
        tokens &= set(params.allowed_token_ids)
    if row.num_output_tokens < params.min_tokens:
        tokens -= {*EOS, *params.stop_token_ids}
    return tokens - {words[0] for words in params.bad_words_ids if words[0] not in EOS}


@pytest.mark.parametrize("seed", range(8))
def test_masks_of_guides_compose_with_every_setting(seed: int) -> None:
    """The tokens left are those that guide and masks leave; their logits are those of the same row without a guide."""
    draw = random.Random(seed)
    rows = [guided_row(draw, random_guide(draw), **random_settings(draw)) for _ in range(30)]
    rows += [make_row(draw, VOCAB, **random_settings(draw)) for _ in range(10)]
    draw.shuffle(rows)
    logits_RV = make_logits("plain", len(rows), VOCAB, seed)
    processed_RV = Chain().process(logits_RV.clone(), rows)
    free = [row._replace(guide=None, params=row.params.replace(structured_outputs=None)) for row in rows]
    free_RV = Chain().process(logits_RV.clone(), free)
    for row, processed_V, free_V in zip(rows, processed_RV, free_RV, strict=True):
        left = kept(row)
        assert set(processed_V.isfinite().nonzero().flatten().tolist()) == left
        index = sorted(left)
        assert torch.equal(processed_V[index], free_V[index])


def samplers() -> list[Sampler]:
    library = native_library()
    native = [Sampler(NativeTokenSelector(Cpu(library, None, 1)))] if isinstance(library, NativeLibrary) else []
    return [Sampler(), *native]


@pytest.mark.parametrize("seed", range(4))
def test_samplers_take_allowed_tokens_and_an_empty_mask_is_a_row_without_one(seed: int) -> None:
    draw = random.Random(seed)
    rows = [guided_row(draw, random_guide(draw), **random_settings(draw)) for _ in range(40)]
    empty = SetGuide(frozenset({7}))
    rows += [
        guided_row(draw, empty, allowed_token_ids=(8,)),
        guided_row(draw, empty, bad_words_ids=((7,),)),
        guided_row(draw, SetGuide(frozenset(), (EOS[0],)), min_tokens=99, max_tokens=200),
        guided_row(draw, SetGuide(frozenset())),
    ]
    logits_RV = make_logits("peaked", len(rows), VOCAB, seed)
    expected: list[int | None] | None = None
    for sampler in samplers():
        tokens = [None if token is None else token.token_id for token in sampler.sample(logits_RV.clone(), rows)]
        assert tokens[-4:] == [None] * 4
        for row, token_id in zip(rows, tokens, strict=True):
            assert (token_id in kept(row)) if kept(row) else token_id is None
        assert expected is None or tokens == expected
        expected = tokens


def test_log_probabilities_are_those_before_masks() -> None:
    draw = random.Random(3)
    row = guided_row(draw, SetGuide(frozenset(), (11,)), logprobs=3, temperature=0.0)
    logits_1V = make_logits("plain", 1, VOCAB)
    (sampled,) = Sampler().sample(logits_1V.clone(), [row])
    assert sampled is not None
    assert sampled.logprob is not None
    assert sampled.token_id == sampled.logprob.token_id == 11
    assert sampled.logprob.logprob == pytest.approx(float(logits_1V.log_softmax(-1)[0, 11]), abs=1e-5)
    assert 11 not in [token_id for token_id, _ in sampled.logprob.top]


def test_rows_of_beams_are_masked() -> None:
    draw = random.Random(4)
    rows = [guided_row(draw, SetGuide(frozenset({3, 9})), temperature=0.0), make_row(draw, VOCAB, temperature=0.0)]
    logprobs_RV: Tensor = Sampler().beam_logprobs(make_logits("plain", 2, VOCAB), rows)
    assert logprobs_RV[0].isfinite().nonzero().flatten().tolist() == [3, 9]
    assert logprobs_RV[1].isfinite().all()


def test_an_error_of_a_guide_leaves_its_row_without_a_token_and_the_others_as_they_were() -> None:
    draw = random.Random(5)
    others = [guided_row(draw, SetGuide(frozenset({3, 4}))), make_row(draw, VOCAB)]
    logits_RV = make_logits("plain", 3, VOCAB)
    failing = guided_row(draw, SetGuide(frozenset(), error=HastenError("a limit")))
    found = Sampler().sample(logits_RV, [others[0], failing, others[1]])
    assert found[1] is None
    assert [found[0], found[2]] == Sampler().sample(logits_RV[[0, 2]], others)
