"""Chi-square test: three tokens of speculative decoding have the model's joint distribution."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.exhaustive import repeats
from tests.sampling.chi_square import MIN_P_VALUE, p_value
from tests.speculative.acceptance.table_model import (
    TableDrafter,
    TableModel,
    TreeDrafter,
    expected_probs,
    make_engine,
    make_request,
)
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.chain import PROCESSORS, Chain
from hasten.sampling.guides.base import MaskWords
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.sampling.token_selector import TorchTokenSelector
from hasten.speculative.acceptance import counter_rng

VOCAB_SIZE, PROMPT, LENGTH = 6, (3, 1), 4
NUM_COMPLETIONS = repeats("acceptance")
SETTINGS = {
    "temperature": 0.9,
    "top_k": 5,
    "top_p": 0.97,
    "repetition_penalty": 1.15,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.1,
}


class ContextMask:
    """A mask that depends on the last token: no token twice in a row, and 5 only after 0."""

    def applies(self, params: SamplingParams) -> bool:
        return True

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        for row, logits_V in zip(rows, logits_RV, strict=True):
            logits_V[[token for token in range(VOCAB_SIZE) if token not in allowed_after(row.token_ids)]] = -torch.inf
        return logits_RV


def allowed_after(token_ids: Sequence[int]) -> list[int]:
    last = token_ids[-1]
    return [token for token in range(VOCAB_SIZE) if token != last and (token != 5 or last == 0)]


class ContextGuide:
    """``ContextMask`` as the guide of a request."""

    def forced_tokens(self, token_ids: Sequence[int]) -> list[int]:
        return []

    def mask(self, token_ids: Sequence[int]) -> MaskWords:
        return np.array([sum(1 << token for token in allowed_after([*PROMPT, *token_ids]))], dtype=np.int32)

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        tokens = [*PROMPT, *token_ids, *next_tokens]
        start = len(tokens) - len(next_tokens)
        legal = [tokens[i] in allowed_after(tokens[:i]) for i in range(start, len(tokens))]
        return [*legal, False].index(False)

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        return True


def joint_probs(model: TableModel) -> Tensor:
    """Return the joint distribution [V, V, V] of output tokens 1, 2 and 3."""
    params = SamplingParams.from_dict(SETTINGS)
    probs = torch.zeros(VOCAB_SIZE, VOCAB_SIZE, VOCAB_SIZE, dtype=torch.float64)
    for tokens in itertools.product(range(VOCAB_SIZE), repeat=LENGTH):
        probability, prefix = 1.0, list(PROMPT)
        for token in tokens:
            if probability:
                probability *= expected_probs(model, prefix, len(PROMPT), params, allowed_after(prefix))[token]
            prefix.append(token)
        probs[tokens[1:]] += probability
    return probs


def sample_completions(model: TableModel, rule: str, drafter: object, num_completions: int, is_guided: bool) -> tuple[Tensor, int]:
    """Return the tokens [completion, position] and the number of accepted draft tokens."""
    processors = PROCESSORS if is_guided else (ContextMask(), *PROCESSORS)
    sampler = Sampler(TorchTokenSelector(Chain(processors=processors)))
    engine = make_engine(model, drafter, sampler, lambda request: ContextGuide() if is_guided else None)
    form = StructuredOutputs(choice=["any"]) if is_guided else None
    tokens: list[tuple[int, ...]] = []
    num_requests = 0
    while len(tokens) < num_completions:
        while engine.scheduler.num_waiting < 2:
            settings = {**SETTINGS, "n": 32, "seed": 1000 + num_requests, "acceptance": rule, "max_tokens": LENGTH}
            settings["structured_outputs"] = form
            engine.add(make_request(num_requests, PROMPT, **settings))
            num_requests += 1
        for delta in engine.step():
            if delta.output is not None:
                tokens += [completion.token_ids for completion in delta.output.outputs]
    return torch.tensor(tokens[:num_completions]), engine.stats.num_accepted_tokens


def joint_p_value(rule: str, drafter: object, num_completions: int = NUM_COMPLETIONS, *, is_guided: bool = False) -> float:
    model = TableModel(VOCAB_SIZE, 21)
    tokens, num_accepted = sample_completions(model, rule, drafter, num_completions, is_guided)
    assert num_accepted > 0.3 * num_completions
    expected = joint_probs(model).flatten()
    cells = (tokens[:, 1] * VOCAB_SIZE + tokens[:, 2]) * VOCAB_SIZE + tokens[:, 3]
    possible = expected > 0
    assert possible[cells].all(), "a token of probability 0 was sampled"
    possible_index = possible.cumsum(0) - 1
    return p_value(possible_index[cells], expected[possible])


def chain_drafter() -> TableDrafter:
    """Return a drafter whose model is near the target, with random numbers of its own."""
    model = TableModel(VOCAB_SIZE, 21)
    model.logits_PV = model.logits_PV + TableModel(VOCAB_SIZE, 22).logits_PV * 0.5
    draw = random.Random(8)
    return TableDrafter(model, 3, lambda request, prefix, q_V: draw.choices(range(VOCAB_SIZE), q_V.tolist())[0])


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_drafted_chains(rule: str) -> None:
    assert joint_p_value(rule, chain_drafter()) > MIN_P_VALUE


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_drafted_chains_of_which_a_guide_drops_nodes(rule: str) -> None:
    assert joint_p_value(rule, chain_drafter(), NUM_COMPLETIONS // 4, is_guided=True) > MIN_P_VALUE


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_drafted_trees(rule: str) -> None:
    assert joint_p_value(rule, TreeDrafter(VOCAB_SIZE, 6), NUM_COMPLETIONS // 5) > MIN_P_VALUE


def test_noise_without_the_position_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution of each single token is right, and the joint distribution is not."""
    monkeypatch.setattr(SamplingRow, "position", property(lambda self: 7))
    assert joint_p_value("exact", chain_drafter(), 4000) < MIN_P_VALUE


def test_constant_acceptance_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_rng, "noise_bits", lambda streams, tokens: torch.tensor(1 << 40))
    assert joint_p_value("rejection", chain_drafter(), 4000) < MIN_P_VALUE
