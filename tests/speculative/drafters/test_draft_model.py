"""The draft model's guesses, with and without blocks to spare, are those of the same model asked afresh for every token.

The oracle stands in for the model: its logits tell whether every key and value that a guess saw was the right one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.scheduling.oracle import VOCABULARY, OracleRunner, SingleThreadDrafter

from hasten.core.draft import Draft
from hasten.core.plan import Runner, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.speculative import draft_tree as growing_tree
from hasten.speculative import growth
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters import draft_model
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest
from hasten.speculative.drafters.draft_model import DraftKvState, DraftModel
from hasten.speculative.step_costs import StepCosts
from hasten.speculative.trust import Trust

GROUPS = (KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7))
BLOCK_SIZE, DEPTH = 4, 4

FREE = StepCosts({1: 1.0, 64: 1.0})  # steps of many tokens take no longer than of one


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
    """Lines that grow by what they take of a guess, or by something else; some end and others begin.

    ``sayable``: the tokens that can be guessed, in ascending order. ``least``: how likely a greedy guess is that is gone on from.
    """

    least = 0.0

    def __init__(self, seed: int, num_blocks: int, max_step: int = 400, sayable: torch.Tensor | None = None) -> None:
        self.random = random.Random(seed)
        self.space = KvCacheManager(GROUPS, num_blocks, BLOCK_SIZE)
        self.lines: dict[int, DraftRequest] = {}
        oracle = OracleRunner(GROUPS, num_blocks, BLOCK_SIZE, lambda sequence_id: self.lines[sequence_id].request.cache_salt)
        self.sayable = torch.arange(VOCABULARY) if sayable is None else sayable
        words = None if sayable is None else DraftVocabulary(sayable, VOCABULARY)
        limits = {"num_tokens": 63, "max_depth": DEPTH, "max_step": max_step, "max_positions": 60}
        self.drafter = DraftModel(Projected(oracle, self.sayable), self.space, Sampler(), costs=FREE, **limits, words=words)
        self.alone = SingleThreadDrafter(GROUPS)
        self.stem = [self.random.randrange(1, VOCABULARY) for _ in range(20)]
        self.full = self.short = self.cut = self.beside = 0
        self._num_lines = 0

    def add(self) -> None:
        draw = self.random
        prompt = self.stem[: draw.randint(0, 20)] + [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, 6))]
        settings = draw.choice(({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.8, "repetition_penalty": 1.3}))
        request = Request(
            request_id=str(self._num_lines),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(seed=draw.getrandbits(30), max_tokens=60, **settings),
            cache_salt=draw.choice(("", "red")),
        )
        self.lines[self._num_lines] = DraftRequest(self._num_lines, list(prompt), request, draw.randint(0, 2))
        self._num_lines += 1

    def round(self) -> None:
        draw = self.random
        lines = list(self.lines.values())
        for line, draft in zip(lines, self.drafter.propose(lines, NO_TARGET_OUTPUT), strict=True):
            right, others = self.expected(line)
            guess = self.checked(draft, right, others) if line.request.params.greedy else draft.token_ids
            assert guess == right[: len(guess)], (guess, right)
            waits = line.sequence_id not in self.drafter._trails
            assert not waits or self.has_companion(line), "for nobody"
            self.full += guess == right
            self.short += guess != right and not waits
            taken = guess[: draw.randint(0, len(guess))]
            line.token_ids.extend(taken)
            line.token_ids.append(draw.randrange(VOCABULARY))
            if len(line.token_ids) > 55:
                del self.lines[line.sequence_id]
        self.space.check()

    def has_companion(self, line: DraftRequest) -> bool:
        """Whether another line begins with the same block, which one of them reads for both."""
        begin = line.request.cache_salt, line.token_ids[:BLOCK_SIZE]
        return [(other.request.cache_salt, other.token_ids[:BLOCK_SIZE]) for other in self.lines.values()].count(begin) > 1

    def checked(self, draft: Draft, right: tuple[int, ...], others: list[dict[int, float]]) -> tuple[int, ...]:
        """The tokens of the path that the model would go. All other nodes are what it finds likely beside it."""
        path = draft.path(right)
        chances = []
        for node, (token, parent, depth) in enumerate(zip(draft.token_ids, draft.parents, draft.depths, strict=True)):
            assert parent == -1 or parent in path, "nobody has been asked what comes after it"
            chances.append(others[depth - 1][token])
            self.beside += node not in path
        assert chances == sorted(chances, reverse=True) and len(draft) <= growing_tree.RANKS * len(path)
        missing = [chance for depth in range(len(path)) for token, chance in others[depth].items() if token not in draft.token_ids]
        assert not missing or max(missing) < 1e-9, "where rows cost nothing all are verified"
        return tuple(draft.token_ids[node] for node in path)

    def expected(self, line: DraftRequest) -> tuple[tuple[int, ...], list[dict[int, float]]]:
        """Up to the guess after which a greedy chain is too doubtful; and of each place the likeliest tokens, and how likely."""
        tokens, request = list(line.token_ids), line.request
        chance = 1.0
        others = []
        for _ in range(DEPTH):
            row = SamplingRow(request.params, tokens, len(request.prompt_token_ids), (), line.answer_index)
            said = torch.isin(torch.arange(VOCABULARY), self.sayable)
            logits = self.alone.logits(tokens, request.cache_salt).where(said, -torch.inf)
            (sampled,) = Sampler().sample(logits, [row])
            tokens = [*tokens, sampled.token_id]
            share = logits[0].softmax(0)
            likely = {*share.topk(growing_tree.RANKS).indices.tolist(), sampled.token_id}
            others.append({token: chance * float(share[token]) for token in likely})
            chance *= float(share[sampled.token_id]) if request.params.greedy else 1.0
            if chance < self.least:
                break
        self.cut += len(tokens) - len(line.token_ids) < DEPTH
        return tuple(tokens[len(line.token_ids) :]), others

    def run(self, rounds: int) -> Bench:
        for _ in range(rounds):
            while len(self.lines) < 5:
                self.add()
            if self.random.random() < 0.1:
                del self.lines[self.random.choice(sorted(self.lines))]
            self.round()
        self.lines.clear()
        self.drafter.propose([], NO_TARGET_OUTPUT)
        assert all(allocator.num_held == 0 for allocator in self.space.allocators), "blocks are held for nobody"
        return self


@pytest.fixture(autouse=True)
def least(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How doubtful guesses may be that are gone on from: as the test says, however doubtful without. None is ever judged."""
    wanted = getattr(request, "param", 0.0)
    monkeypatch.setattr(Bench, "least", wanted)
    monkeypatch.setattr(growth, "doubt", lambda *_: wanted)
    monkeypatch.setattr(Trust, "note", lambda *_, **__: None)


@pytest.mark.parametrize("seed", range(8))
def test_guesses_are_what_the_model_would_say(seed: int) -> None:
    bench = Bench(seed, num_blocks=200).run(60)
    assert bench.full > 200 and bench.short < bench.full / 20  # short ones only near the last position


@pytest.mark.parametrize("seed", range(4))
def test_where_blocks_or_tokens_are_short_guesses_are_shorter_and_never_wrong(seed: int) -> None:
    blocks, tokens = Bench(seed, num_blocks=40).run(60), Bench(seed, num_blocks=200, max_step=9).run(60)
    assert blocks.short > 10 and blocks.full > 10
    assert tokens.short > 10 and tokens.full > 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [0.25], indirect=True)
def test_greedy_guesses_end_where_they_become_doubtful(seed: int) -> None:
    bench = Bench(seed, num_blocks=200).run(60)
    assert bench.full > 150 and bench.short < bench.full / 20
    assert 20 < bench.cut < bench.full  # those that are sampled go on
    assert bench.beside > 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("least", [0.25], indirect=True)
def test_a_model_of_few_tokens_doubts_by_those_alone(seed: int) -> None:
    bench = Bench(seed, num_blocks=200, sayable=torch.arange(1, VOCABULARY, 3)).run(60)
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
    bench = Bench(0, num_blocks=200, max_step=16)
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
    bench.lines[0] = greedy(0, bench.stem[:8], max_tokens)
    (draft,) = bench.drafter.propose([bench.lines[0]], NO_TARGET_OUTPUT)
    room = min(DEPTH, max_tokens - 1)  # the step that verifies gives the last token
    assert max(draft.depths, default=0) == room and len(clock.steps) == room


def test_what_lines_begin_with_is_read_once(timed: tuple[Bench, Timed]) -> None:
    bench, clock = timed
    bench.lines |= {number: greedy(number, [*bench.stem, number + 1], 40) for number in range(4)}
    lines = list(bench.lines.values())
    first = bench.drafter.propose(lines, NO_TARGET_OUTPUT)
    for line in lines:
        line.token_ids.append(1)
    assert first[0] and all(bench.drafter.propose(lines, NO_TARGET_OUTPUT))
    # The stem has five blocks, and each line adds its last token and what is guessed after it.
    assert sum(clock.steps) <= len(bench.stem) + len(lines) * 2 * (1 + DEPTH)


def test_reading_a_long_prompt_is_not_taken_for_guessing(timed: tuple[Bench, Timed], monkeypatch: pytest.MonkeyPatch) -> None:
    bench, clock = timed
    monkeypatch.setattr(draft_model, "LONG", 4)
    bench.lines[0] = greedy(0, (bench.stem * 3)[:55], 40)
    drafter = bench.drafter
    bench.drafter.propose([bench.lines[0]], NO_TARGET_OUTPUT)
    assert clock.steps[:3] == [16, 16, 16], "several calls for the prompt"
    assert drafter._growth.pace.reading(100) == pytest.approx(100) and (drafter.cost(1, 1) or 0.0) <= 8


@pytest.mark.parametrize(
    ("computed", "verified", "line", "left"),
    [
        ([1, 2, 3, 4], 2, [1, 2, 3, 4, 5], [1, 2, 3, 4]),
        ([1, 2, 3, 4], 2, [1, 2, 3, 9], [1, 2, 3]),
        ([1, 2, 3, 4], 2, [1, 2, 9, 4], [1, 2]),
        ([1, 2], 2, [1, 2, 9], [1, 2]),
    ],
)
def test_a_trail_keeps_what_the_line_has_taken(computed: list[int], verified: int, line: Sequence[int], left: list[int]) -> None:
    trail = DraftKvState(computed, verified)
    trail.follow(line)
    assert (trail.token_ids, trail.num_verified) == (left, len(left))
