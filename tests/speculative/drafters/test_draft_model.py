"""Drafts of a draft model with a paged KV cache equal those of the same model without a cache.

The oracle model's logits depend on every key and value that a token attends to, so a wrong cache entry changes the draft.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.scheduling.oracle import VOCAB_SIZE, OracleRunner, ReferenceModel

from hasten.core.draft import Draft
from hasten.core.plan import Runner, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.speculative import policy
from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import RANKS
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters import draft_model
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest
from hasten.speculative.drafters.draft_model import DraftKvState, DraftModel

GROUPS = (KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7))
BLOCK_SIZE, DEPTH = 4, 4

CONSTANT_COST = CostModel({1: 1.0, 64: 1.0})  # every step takes one second


class ReducedVocabularyRunner:
    """A runner whose logits cover only some tokens."""

    def __init__(self, runner: Runner, token_ids: torch.Tensor) -> None:
        self._runner, self._token_ids = runner, token_ids

    def run(self, plan: StepPlan) -> RunnerOutput:
        output = self._runner.run(plan)
        return replace(output, logits=output.logits[:, self._token_ids])

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)


class Simulation:
    """Sequences that accept a part of each draft and one other token; sequences end and new ones start.

    ``draft_ids`` is the draft vocabulary, ascending.
    """

    min_probability = 0.0  # path probability below which no node is expanded

    def __init__(
        self, seed: int, num_blocks: int, max_num_batched_tokens: int = 400, draft_ids: torch.Tensor | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.kv = KvCacheManager(GROUPS, num_blocks, BLOCK_SIZE)
        self.requests: dict[int, DraftRequest] = {}
        oracle = OracleRunner(GROUPS, num_blocks, BLOCK_SIZE, lambda sequence_id: self.requests[sequence_id].request.cache_salt)
        self.draft_ids = torch.arange(VOCAB_SIZE) if draft_ids is None else draft_ids
        vocabulary = None if draft_ids is None else DraftVocabulary(draft_ids, VOCAB_SIZE)
        limits = {"num_tokens": 63, "max_depth": DEPTH, "max_num_batched_tokens": max_num_batched_tokens, "max_positions": 60}
        self.drafter = DraftModel(
            ReducedVocabularyRunner(oracle, self.draft_ids),
            self.kv,
            Sampler(),
            costs=CONSTANT_COST,
            **limits,
            vocabulary=vocabulary,
        )
        self.reference = ReferenceModel(GROUPS)
        self.shared_prefix = [self.random.randrange(1, VOCAB_SIZE) for _ in range(20)]
        self.num_full = self.num_short = 0  # drafts with all expected tokens, and with fewer
        self.num_stopped = 0  # expected chains that end below ``min_probability``
        self.num_alternatives = 0  # nodes off the path of most likely tokens
        self._num_requests = 0

    def add(self) -> None:
        draw = self.random
        prompt = self.shared_prefix[: draw.randint(0, 20)] + [draw.randrange(1, VOCAB_SIZE) for _ in range(draw.randint(1, 6))]
        settings = draw.choice(({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.8, "repetition_penalty": 1.3}))
        request = Request(
            request_id=str(self._num_requests),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(seed=draw.getrandbits(30), max_tokens=60, **settings),
            cache_salt=draw.choice(("", "red")),
        )
        self.requests[self._num_requests] = DraftRequest(self._num_requests, list(prompt), request, draw.randint(0, 2))
        self._num_requests += 1

    def round(self) -> None:
        draw = self.random
        requests = list(self.requests.values())
        for request, draft in zip(requests, self.drafter.propose(requests, NO_TARGET_OUTPUT), strict=True):
            expected, candidates = self.expected(request)
            chain = self.main_path(draft, expected, candidates) if request.request.params.greedy else draft.token_ids
            assert chain == expected[: len(chain)], (chain, expected)
            waits = request.sequence_id not in self.drafter._kv_states
            assert not waits or self.shares_a_prefix(request), "a request waits for a prefix that no other request computes"
            self.num_full += chain == expected
            self.num_short += chain != expected and not waits
            accepted = chain[: draw.randint(0, len(chain))]
            request.token_ids.extend(accepted)
            request.token_ids.append(draw.randrange(VOCAB_SIZE))
            if len(request.token_ids) > 55:
                del self.requests[request.sequence_id]
        self.kv.check()

    def shares_a_prefix(self, request: DraftRequest) -> bool:
        """Return whether another request starts with the same block, which is computed once for both."""
        first_block = request.request.cache_salt, request.token_ids[:BLOCK_SIZE]
        first_blocks = [(other.request.cache_salt, other.token_ids[:BLOCK_SIZE]) for other in self.requests.values()]
        return first_blocks.count(first_block) > 1

    def main_path(self, draft: Draft, expected: tuple[int, ...], candidates: list[dict[int, float]]) -> tuple[int, ...]:
        """Return the tokens of the expected path, after a check of the alternatives."""
        path = draft.accepted_path(expected)
        probabilities = []
        for node, (token, parent, depth) in enumerate(zip(draft.token_ids, draft.parents, draft.depths, strict=True)):
            assert parent == -1 or parent in path, "the parent was not expanded"
            probabilities.append(candidates[depth - 1][token])
            self.num_alternatives += node not in path
        assert probabilities == sorted(probabilities, reverse=True) and len(draft) <= RANKS * len(path)
        missing = [
            probability
            for depth in range(len(path))
            for token, probability in candidates[depth].items()
            if token not in draft.token_ids
        ]
        assert not missing or max(missing) < 1e-9, "all nodes are verified where rows cost nothing"
        return tuple(draft.token_ids[node] for node in path)

    def expected(self, draft_request: DraftRequest) -> tuple[tuple[int, ...], list[dict[int, float]]]:
        """Return the expected chain and, per position, the candidates with their path probabilities."""
        tokens, request = list(draft_request.token_ids), draft_request.request
        path_probability = 1.0
        candidates = []
        for _ in range(DEPTH):
            row = SamplingRow(request.params, tokens, len(request.prompt_token_ids), (), draft_request.output_index)
            allowed = torch.isin(torch.arange(VOCAB_SIZE), self.draft_ids)
            logits = self.reference.logits(tokens, request.cache_salt).where(allowed, -torch.inf)
            (sampled,) = Sampler().sample(logits, [row])
            tokens = [*tokens, sampled.token_id]
            probs = logits[0].softmax(0)
            top = {*probs.topk(RANKS).indices.tolist(), sampled.token_id}
            candidates.append({token: path_probability * float(probs[token]) for token in top})
            path_probability *= float(probs[sampled.token_id]) if request.params.greedy else 1.0
            if path_probability < self.min_probability:
                break
        self.num_stopped += len(tokens) - len(draft_request.token_ids) < DEPTH
        return tuple(tokens[len(draft_request.token_ids) :]), candidates

    def run(self, rounds: int) -> Simulation:
        for _ in range(rounds):
            while len(self.requests) < 5:
                self.add()
            if self.random.random() < 0.1:
                del self.requests[self.random.choice(sorted(self.requests))]
            self.round()
        self.requests.clear()
        self.drafter.propose([], NO_TARGET_OUTPUT)
        assert all(allocator.num_held == 0 for allocator in self.kv.allocators), "blocks are held without a request"
        return self


@pytest.fixture(autouse=True)
def min_probability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the minimum path probability of expansion, 0 by default, and turn calibration off."""
    probability = getattr(request, "param", 0.0)
    monkeypatch.setattr(Simulation, "min_probability", probability)
    monkeypatch.setattr(policy, "min_expand_probability", lambda *_: probability)
    monkeypatch.setattr(AcceptanceCalibration, "record", lambda *_, **__: None)


@pytest.mark.parametrize("seed", range(8))
def test_drafts_equal_those_without_a_kv_cache(seed: int) -> None:
    simulation = Simulation(seed, num_blocks=200).run(60)
    # Drafts are short only near the last position.
    assert simulation.num_full > 200 and simulation.num_short < simulation.num_full / 20


@pytest.mark.parametrize("seed", range(4))
def test_drafts_are_shorter_and_right_with_few_blocks_or_small_steps(seed: int) -> None:
    few_blocks = Simulation(seed, num_blocks=40).run(60)
    small_steps = Simulation(seed, num_blocks=200, max_num_batched_tokens=9).run(60)
    assert few_blocks.num_short > 10 and few_blocks.num_full > 10
    assert small_steps.num_short > 10 and small_steps.num_full > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_probability", [0.25], indirect=True)
def test_greedy_drafts_end_below_the_minimum_probability(seed: int) -> None:
    simulation = Simulation(seed, num_blocks=200).run(60)
    assert simulation.num_full > 150 and simulation.num_short < simulation.num_full / 20
    assert 20 < simulation.num_stopped < simulation.num_full  # sampled drafts continue
    assert simulation.num_alternatives > 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_probability", [0.25], indirect=True)
def test_probabilities_are_those_within_a_reduced_draft_vocabulary(seed: int) -> None:
    simulation = Simulation(seed, num_blocks=200, draft_ids=torch.arange(1, VOCAB_SIZE, 3)).run(60)
    assert simulation.num_full > 150 and simulation.num_stopped > 20


class TimedRunner:
    """A runner with a simulated clock: each token takes a second."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.now, self.steps = runner, 0.0, list[int]()

    def run(self, plan: StepPlan) -> RunnerOutput:
        self.steps.append(plan.num_tokens)
        self.now += plan.num_tokens
        return self._runner.run(plan)

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> tuple[Simulation, TimedRunner]:
    simulation = Simulation(0, num_blocks=200, max_num_batched_tokens=16)
    runner = TimedRunner(simulation.drafter._runner)
    simulation.drafter._runner = runner
    monkeypatch.setattr(draft_model.time, "perf_counter", lambda: runner.now)
    return simulation, runner


def greedy_request(sequence_id: int, prompt: Sequence[int], max_tokens: int) -> DraftRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    request = Request(request_id=str(sequence_id), prompt_token_ids=tuple(prompt), params=params)
    return DraftRequest(sequence_id, list(prompt), request, 0)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_nothing_is_drafted_beyond_max_tokens(timed: tuple[Simulation, TimedRunner], max_tokens: int) -> None:
    simulation, runner = timed
    simulation.requests[0] = greedy_request(0, simulation.shared_prefix[:8], max_tokens)
    (draft,) = simulation.drafter.propose([simulation.requests[0]], NO_TARGET_OUTPUT)
    room = min(DEPTH, max_tokens - 1)  # the step that verifies gives the last token
    assert max(draft.depths, default=0) == room and len(runner.steps) == room


def test_a_shared_prefix_is_computed_once(timed: tuple[Simulation, TimedRunner]) -> None:
    simulation, runner = timed
    simulation.requests |= {i: greedy_request(i, [*simulation.shared_prefix, i + 1], 40) for i in range(4)}
    requests = list(simulation.requests.values())
    first = simulation.drafter.propose(requests, NO_TARGET_OUTPUT)
    for request in requests:
        request.token_ids.append(1)
    assert first[0] and all(simulation.drafter.propose(requests, NO_TARGET_OUTPUT))
    # The shared prefix has five blocks; each request adds its last token and its draft tokens.
    assert sum(runner.steps) <= len(simulation.shared_prefix) + len(requests) * 2 * (1 + DEPTH)


def test_the_prefill_of_a_long_prompt_does_not_count_as_drafting(
    timed: tuple[Simulation, TimedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, runner = timed
    monkeypatch.setattr(draft_model, "MIN_PREFILL", 4)
    simulation.requests[0] = greedy_request(0, (simulation.shared_prefix * 3)[:55], 40)
    drafter = simulation.drafter
    simulation.drafter.propose([simulation.requests[0]], NO_TARGET_OUTPUT)
    assert runner.steps[:3] == [16, 16, 16], "several calls for the prompt"
    assert drafter._expansion.draft_costs.prefill_seconds(100) == pytest.approx(100) and (drafter.round_seconds(1, 1) or 0.0) <= 8


@pytest.mark.parametrize(
    ("computed", "verified", "token_ids", "kept"),
    [
        ([1, 2, 3, 4], 2, [1, 2, 3, 4, 5], [1, 2, 3, 4]),
        ([1, 2, 3, 4], 2, [1, 2, 3, 9], [1, 2, 3]),
        ([1, 2, 3, 4], 2, [1, 2, 9, 4], [1, 2]),
        ([1, 2], 2, [1, 2, 9], [1, 2]),
    ],
)
def test_the_kv_state_keeps_the_accepted_tokens(
    computed: list[int], verified: int, token_ids: Sequence[int], kept: list[int]
) -> None:
    state = DraftKvState(computed, verified)
    state.truncate(token_ids)
    assert (state.token_ids, state.num_accepted) == (kept, len(kept))
