"""Drafts of the draft model, with and without blocks to spare, equal those of the same model run anew for every token.

The oracle model's logits tell whether each key and value that a draft token attended to was right.
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
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters import draft_model
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest
from hasten.speculative.drafters.draft_model import DraftKvState, DraftModel
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_tree import RANKS

GROUPS = (KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7))
BLOCK_SIZE, DEPTH = 4, 4

FREE = CostModel({1: 1.0, 64: 1.0})  # steps of many tokens take no longer than of one


class Projected:
    """A model that says some tokens alone."""

    def __init__(self, runner: Runner, token_ids: torch.Tensor) -> None:
        self._runner, self._token_ids = runner, token_ids

    def run(self, plan: StepPlan) -> RunnerOutput:
        output = self._runner.run(plan)
        return replace(output, logits=output.logits[:, self._token_ids])

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)


class Bench:
    """Sequences that take a part of each draft, or another token; some end and others begin.

    ``draft_ids``: the draft vocabulary, ascending. ``min_probability``: of a node that is expanded.
    """

    min_probability = 0.0

    def __init__(self, seed: int, num_blocks: int, max_num_batched_tokens: int = 400, draft_ids: torch.Tensor | None = None) -> None:
        self.random = random.Random(seed)
        self.space = KvCacheManager(GROUPS, num_blocks, BLOCK_SIZE)
        self.requests: dict[int, DraftRequest] = {}
        oracle = OracleRunner(GROUPS, num_blocks, BLOCK_SIZE, lambda sequence_id: self.requests[sequence_id].request.cache_salt)
        self.draft_ids = torch.arange(VOCAB_SIZE) if draft_ids is None else draft_ids
        vocabulary = None if draft_ids is None else DraftVocabulary(draft_ids, VOCAB_SIZE)
        limits = {"num_tokens": 63, "max_depth": DEPTH, "max_step": max_num_batched_tokens, "max_positions": 60}
        self.drafter = DraftModel(Projected(oracle, self.draft_ids), self.space, Sampler(), costs=FREE, **limits, vocabulary=vocabulary)
        self.alone = ReferenceModel(GROUPS)
        self.stem = [self.random.randrange(1, VOCAB_SIZE) for _ in range(20)]
        self.full = self.short = self.cut = self.beside = 0
        self._num_requests = 0

    def add(self) -> None:
        draw = self.random
        prompt = self.stem[: draw.randint(0, 20)] + [draw.randrange(1, VOCAB_SIZE) for _ in range(draw.randint(1, 6))]
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
            right, others = self.expected(request)
            draft_ids = self.checked(draft, right, others) if request.request.params.greedy else draft.token_ids
            assert draft_ids == right[: len(draft_ids)], (draft_ids, right)
            waits = request.sequence_id not in self.drafter._kv_states
            assert not waits or self.has_companion(request), "for nobody"
            self.full += draft_ids == right
            self.short += draft_ids != right and not waits
            taken = draft_ids[: draw.randint(0, len(draft_ids))]
            request.token_ids.extend(taken)
            request.token_ids.append(draw.randrange(VOCAB_SIZE))
            if len(request.token_ids) > 55:
                del self.requests[request.sequence_id]
        self.space.check()

    def has_companion(self, request: DraftRequest) -> bool:
        """Whether another request begins with the same block, which one of them reads for both."""
        begin = request.request.cache_salt, request.token_ids[:BLOCK_SIZE]
        return [(other.request.cache_salt, other.token_ids[:BLOCK_SIZE]) for other in self.requests.values()].count(begin) > 1

    def checked(self, draft: Draft, right: tuple[int, ...], others: list[dict[int, float]]) -> tuple[int, ...]:
        """The tokens of the path that the model would go. All other nodes are what it finds likely beside it."""
        path = draft.accepted_path(right)
        probabilities = []
        for node, (token, parent, depth) in enumerate(zip(draft.token_ids, draft.parents, draft.depths, strict=True)):
            assert parent == -1 or parent in path, "nobody has been asked what comes after it"
            probabilities.append(others[depth - 1][token])
            self.beside += node not in path
        assert probabilities == sorted(probabilities, reverse=True) and len(draft) <= RANKS * len(path)
        missing = [probability for depth in range(len(path)) for token, probability in others[depth].items() if token not in draft.token_ids]
        assert not missing or max(missing) < 1e-9, "where rows cost nothing all are verified"
        return tuple(draft.token_ids[node] for node in path)

    def expected(self, draft_request: DraftRequest) -> tuple[tuple[int, ...], list[dict[int, float]]]:
        """Return the chain up to where a greedy one ends, and per position the candidates with their path probabilities."""
        tokens, request = list(draft_request.token_ids), draft_request.request
        path_probability = 1.0
        candidates = []
        for _ in range(DEPTH):
            row = SamplingRow(request.params, tokens, len(request.prompt_token_ids), (), draft_request.output_index)
            allowed = torch.isin(torch.arange(VOCAB_SIZE), self.draft_ids)
            logits = self.alone.logits(tokens, request.cache_salt).where(allowed, -torch.inf)
            (sampled,) = Sampler().sample(logits, [row])
            tokens = [*tokens, sampled.token_id]
            share = logits[0].softmax(0)
            top = {*share.topk(RANKS).indices.tolist(), sampled.token_id}
            candidates.append({token: path_probability * float(share[token]) for token in top})
            path_probability *= float(share[sampled.token_id]) if request.params.greedy else 1.0
            if path_probability < self.min_probability:
                break
        self.cut += len(tokens) - len(draft_request.token_ids) < DEPTH
        return tuple(tokens[len(draft_request.token_ids) :]), candidates

    def run(self, rounds: int) -> Bench:
        for _ in range(rounds):
            while len(self.requests) < 5:
                self.add()
            if self.random.random() < 0.1:
                del self.requests[self.random.choice(sorted(self.requests))]
            self.round()
        self.requests.clear()
        self.drafter.propose([], NO_TARGET_OUTPUT)
        assert all(allocator.num_held == 0 for allocator in self.space.allocators), "blocks are held for nobody"
        return self


@pytest.fixture(autouse=True)
def min_probability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How doubtful guesses may be that are gone on from: as the test says, however doubtful without. None is ever judged."""
    wanted = getattr(request, "param", 0.0)
    monkeypatch.setattr(Bench, "min_probability", wanted)
    monkeypatch.setattr(policy, "min_expand_probability", lambda *_: wanted)
    monkeypatch.setattr(AcceptanceCalibration, "record", lambda *_, **__: None)


@pytest.mark.parametrize("seed", range(8))
def test_guesses_are_what_the_model_would_say(seed: int) -> None:
    bench = Bench(seed, num_blocks=200).run(60)
    assert bench.full > 200 and bench.short < bench.full / 20  # short ones only near the last position


@pytest.mark.parametrize("seed", range(4))
def test_where_blocks_or_tokens_are_short_guesses_are_shorter_and_never_wrong(seed: int) -> None:
    blocks, tokens = Bench(seed, num_blocks=40).run(60), Bench(seed, num_blocks=200, max_num_batched_tokens=9).run(60)
    assert blocks.short > 10 and blocks.full > 10
    assert tokens.short > 10 and tokens.full > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_probability", [0.25], indirect=True)
def test_greedy_guesses_end_where_they_become_doubtful(seed: int) -> None:
    bench = Bench(seed, num_blocks=200).run(60)
    assert bench.full > 150 and bench.short < bench.full / 20
    assert 20 < bench.cut < bench.full  # those that are sampled go on
    assert bench.beside > 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_probability", [0.25], indirect=True)
def test_a_model_of_few_tokens_doubts_by_those_alone(seed: int) -> None:
    bench = Bench(seed, num_blocks=200, draft_ids=torch.arange(1, VOCAB_SIZE, 3)).run(60)
    assert bench.full > 150 and bench.cut > 20


class Timed:
    """A runner on a clock: each token takes a second."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.now, self.steps = runner, 0.0, list[int]()

    def run(self, plan: StepPlan) -> RunnerOutput:
        self.steps.append(plan.num_tokens)
        self.now += plan.num_tokens
        return self._runner.run(plan)

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Timed]:
    bench = Bench(0, num_blocks=200, max_num_batched_tokens=16)
    timed = Timed(bench.drafter._runner)
    bench.drafter._runner = timed
    monkeypatch.setattr(draft_model.time, "perf_counter", lambda: timed.now)
    return bench, timed


def greedy(number: int, prompt: Sequence[int], max_tokens: int) -> DraftRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return DraftRequest(number, list(prompt), Request(request_id=str(number), prompt_token_ids=tuple(prompt), params=params), 0)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9])
def test_nothing_is_guessed_beyond_the_end_of_an_answer(timed: tuple[Bench, Timed], max_tokens: int) -> None:
    bench, clock = timed
    bench.requests[0] = greedy(0, bench.stem[:8], max_tokens)
    (draft,) = bench.drafter.propose([bench.requests[0]], NO_TARGET_OUTPUT)
    room = min(DEPTH, max_tokens - 1)  # the step that verifies gives the last token
    assert max(draft.depths, default=0) == room and len(clock.steps) == room


def test_what_lines_begin_with_is_read_once(timed: tuple[Bench, Timed]) -> None:
    bench, clock = timed
    bench.requests |= {number: greedy(number, [*bench.stem, number + 1], 40) for number in range(4)}
    requests = list(bench.requests.values())
    first = bench.drafter.propose(requests, NO_TARGET_OUTPUT)
    for request in requests:
        request.token_ids.append(1)
    assert first[0] and all(bench.drafter.propose(requests, NO_TARGET_OUTPUT))
    # The stem has five blocks, and each request adds its last token and what is guessed after it.
    assert sum(clock.steps) <= len(bench.stem) + len(requests) * 2 * (1 + DEPTH)


def test_reading_a_long_prompt_is_not_taken_for_guessing(timed: tuple[Bench, Timed], monkeypatch: pytest.MonkeyPatch) -> None:
    bench, clock = timed
    monkeypatch.setattr(draft_model, "MIN_PREFILL", 4)
    bench.requests[0] = greedy(0, (bench.stem * 3)[:55], 40)
    drafter = bench.drafter
    bench.drafter.propose([bench.requests[0]], NO_TARGET_OUTPUT)
    assert clock.steps[:3] == [16, 16, 16], "several calls for the prompt"
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
def test_the_kv_state_keeps_what_the_sequence_took(
    computed: list[int], verified: int, token_ids: Sequence[int], kept: list[int]
) -> None:
    state = DraftKvState(computed, verified)
    state.truncate(token_ids)
    assert (state.token_ids, state.num_accepted) == (kept, len(kept))
