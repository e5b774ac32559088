"""``AutoDrafter`` against plain decoding and the best drafter, at known costs and acceptance rates.

Time is simulated: a step of n tokens takes the time of a cost function.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.cost_model import CostModel
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, Drafter, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.policy import HORIZON, AutoDrafter

REQUEST = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams(max_tokens=100_000))
SIZES = (1, 2, 4, 8, 16, 32, 64)


def memory_bound(num_tokens: int) -> float:
    """Return the step time of a large model on a small CPU: up to eight tokens cost about as much as one."""
    return 0.020 + 0.0002 * num_tokens + 0.0018 * max(0, num_tokens - 8)


def compute_bound(num_tokens: int) -> float:
    return 0.002 + 0.003 * num_tokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def target_tokens(request: DraftRequest, count: int) -> list[int]:
    """Return the next tokens that the target samples, with any drafter."""
    return [7 * request.sequence_id + 3 * i for i in range(len(request.token_ids), len(request.token_ids) + count)]


def random_draft(request: DraftRequest, count: int, rate: float, draw: random.Random) -> Draft:
    """Return a chain in which each token after an accepted one is right with probability ``rate``."""
    num_right = next((i for i in range(count) if draw.random() >= rate), count)
    return Draft.chain([*target_tokens(request, num_right), *[-1] * (count - num_right)])


def simulate(
    drafter: Drafter | None, requests: Sequence[DraftRequest], costs: Callable[[int], float], clock: Clock, rounds: int
) -> list[int]:
    """Return the number of tokens of each step.

    Every request gains the accepted draft tokens and one more.
    """
    sizes = [0]
    for _ in range(rounds):
        drafts = drafter.propose(requests, TargetOutput(sizes[-1])) if drafter else [NO_DRAFT] * len(requests)
        sizes.append(len(requests) + sum(map(len, drafts)))
        clock.now += costs(sizes[-1])
        for request, draft in zip(requests, drafts, strict=True):
            accepted = draft.accepted_path(target_tokens(request, len(draft)))
            request.token_ids.extend(target_tokens(request, 1 + len(accepted)))
    return sizes[1:]


@dataclass
class TextDrafter:
    """A drafter that has drafts for a share of the requests, at no cost."""

    available: float
    length: int
    rate: Callable[[DraftRequest], float]
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    aux_layer_indices: tuple[int, ...] = ()

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        return [self._draft(request) if self.draw.random() < self.available else NO_DRAFT for request in requests]

    def _draft(self, request: DraftRequest) -> Draft:
        return random_draft(request, self.length, self.rate(request), self.draw)


@dataclass
class PricedDrafter(ModelDrafter):
    """A drafter that has drafts for all requests, at a price per token."""

    clock: Clock
    seconds: float
    rate: float = 0.0
    num_tokens: int = 4
    draw: random.Random = field(default_factory=lambda: random.Random(2))
    aux_layer_indices: tuple[int, ...] = ()
    batch_sizes: list[int] = field(default_factory=list)  # of the drafts so far
    draft_lengths: tuple[int, ...] = (1, 2, 3, 4, 6)

    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None: ...

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self.clock.now += self.seconds * self.num_tokens
        self.batch_sizes.append(len(requests))
        return [random_draft(request, self.num_tokens, self.rate, self.draw) for request in requests]

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        return self.seconds * num_tokens if min(self.batch_sizes, default=99) <= batch_size else None

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        return 0.0


Policy = Callable[[Clock, TextDrafter, PricedDrafter], Drafter | None]


@dataclass
class World:
    costs: Callable[[int], float]
    text_rate: float  # acceptance rate of text drafts, token by token
    model_rate: float
    available: float = 0.5
    model_seconds: float = 0.002

    def tokens_per_second(self, batch_size: int, policy: Policy, rounds: int = 300) -> float:
        clock, requests = Clock(), [DraftRequest(i, [1], REQUEST, 0) for i in range(batch_size)]
        text = TextDrafter(self.available, 8, lambda request: self.text_rate)
        drafter = policy(clock, text, PricedDrafter(clock, self.model_seconds, self.model_rate))
        simulate(drafter, requests, self.costs, clock, rounds)
        return sum(len(request.token_ids) - 1 for request in requests) / clock.now

    def auto(self, clock: Clock, text: TextDrafter, model: PricedDrafter) -> AutoDrafter:
        return AutoDrafter({"text": text}, {"model": model}, cost_model(self.costs), clock)


def cost_model(costs: Callable[[int], float]) -> CostModel:
    return CostModel({size: costs(size) for size in SIZES})


def model_with_drafts_of(length: int) -> Policy:
    def policy(clock: Clock, text: TextDrafter, model: PricedDrafter) -> PricedDrafter:
        model.num_tokens = length
        return model

    return policy


FIXED: dict[str, Policy] = {
    "off": lambda clock, text, model: None,
    "text": lambda clock, text, model: text,
    "model 2": model_with_drafts_of(2),
    "model 4": model_with_drafts_of(4),
    "model 6": model_with_drafts_of(6),
}


@pytest.mark.parametrize("costs", [memory_bound, compute_bound])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_auto_nearly_equals_the_best_policy_and_plain_decoding(costs: Callable[[int], float], batch_size: int) -> None:
    for text_rate, model_rate in itertools.product((0.05, 0.5, 0.9), repeat=2):
        world = World(costs, text_rate, model_rate)
        fixed = {name: world.tokens_per_second(batch_size, policy) for name, policy in FIXED.items()}
        auto = world.tokens_per_second(batch_size, world.auto)
        assert auto >= 0.97 * fixed["off"], (text_rate, model_rate, fixed, auto)
        assert auto >= 0.92 * max(fixed.values()), (text_rate, model_rate, fixed, auto)


@pytest.mark.parametrize(("rate", "pays"), [(0.05, False), (0.95, True)])
def test_a_drafter_that_does_not_pay_is_probed_on_one_request(rate: float, pays: bool) -> None:
    models: list[PricedDrafter] = []
    world = World(memory_bound, 0.05, rate)

    def policy(clock: Clock, text: TextDrafter, model: PricedDrafter) -> AutoDrafter:
        models.append(model)
        return world.auto(clock, text, model)

    world.tokens_per_second(4, policy)
    (model,) = models
    assert model.batch_sizes[0] == 1  # its cost is still unknown
    if pays:
        assert model.batch_sizes.count(4) > 100
    else:
        assert model.batch_sizes.count(4) < 5 and set(model.batch_sizes[8:]) == {1}


def test_the_prefill_cost_is_read_after_the_step_is_observed() -> None:
    """Otherwise the prompt that the last step computed would be missing from it."""
    events: list[str] = []

    class PrefillDrafter(PricedDrafter):
        def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
            events.append("observe")

        def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
            events.append("prefill")
            return 0.0

    clock, request = Clock(), DraftRequest(0, [1], REQUEST, 0)
    auto = AutoDrafter({}, {"model": PrefillDrafter(clock, 0.001)}, CostModel({1: 0.02, 64: 0.03}), clock)
    num_tokens = rounds = 0
    while events.count("prefill") < 5:
        events.append("round")
        (draft,) = auto.propose([request], TargetOutput(num_tokens))
        num_tokens, rounds = 1 + len(draft), rounds + 1
        clock.now += 0.02
        request.token_ids.extend([*draft.token_ids, 7])
    assert [after for before, after in itertools.pairwise(events) if before == "round"] == ["observe"] * rounds


def chosen(auto: AutoDrafter) -> tuple[str, int]:
    """Return the chosen drafter and draft length for one request without a text draft."""
    name, num_tokens, _ = auto._choose([NO_DRAFT], [DraftRequest(0, [1], REQUEST, 0)])
    return name, num_tokens


@pytest.mark.parametrize(("share", "expected"), [(0.0, "model"), (0.5, "model"), (0.97, ""), (1.1, "")])
def test_a_prefill_must_pay_for_itself_by_a_margin(share: float, expected: str | None) -> None:
    """``share`` is the prefill time as a fraction of the time that drafts seem to save."""
    step, length = 0.02, 6
    plain, seconds = HORIZON * step / 1.1, (step + length * 0.002) / (1 + length)

    class PrefillDrafter(PricedDrafter):
        def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
            return share * (plain - HORIZON * seconds)

    model = PrefillDrafter(Clock(), 0.002, batch_sizes=[1])
    auto = AutoDrafter({}, {"model": model}, CostModel({1: step, 64: step}), model.clock)
    auto._curves["model"] = [1.0] * length
    assert chosen(auto) == (expected, length if expected else 0)


@pytest.mark.parametrize(("seconds", "verified"), [(1.3, 1), (1.4, 0)])
def test_drafts_are_verified_only_for_an_expected_gain_of_a_tenth(seconds: float, verified: int) -> None:
    """One draft token of assumed acceptance rate 0.5 gives 1.5 tokens, against one token in one second."""
    auto = AutoDrafter({"text": TextDrafter(1.0, 1, lambda request: 1.0)}, {}, CostModel({1: 1.0, 2: seconds}), Clock())
    (draft,) = auto.propose([DraftRequest(0, [1], REQUEST, 0)], NO_TARGET_OUTPUT)
    assert len(draft) == verified


@pytest.mark.parametrize(("seconds", "asked"), [(0.08, ("model", 1)), (0.12, ("", 0))])
def test_a_drafter_is_asked_only_where_its_cost_leaves_that_tenth(seconds: float, asked: tuple[str, int]) -> None:
    """One draft token that is always right: 2 tokens in 1.7 and so many seconds, against one in one."""
    model = PricedDrafter(Clock(), seconds, batch_sizes=[1], draft_lengths=(1,))
    auto = AutoDrafter({}, {"model": model}, CostModel({1: 1.0, 2: 1.7}), model.clock)
    auto._curves["model"] = [1.0]
    assert chosen(auto) == asked


def test_one_low_estimate_does_not_end_a_drafter_that_is_always_right() -> None:
    """Its probability of the first draft is far too low, as before calibration. Waiting for the next probe would take 20 rounds."""

    class UncalibratedDrafter(PricedDrafter):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            prob = 0.9 if self.batch_sizes else 0.1
            drafts = super().draft(requests)
            return [replace(d, acceptance_probs=tuple(prob ** (i + 1) for i in range(len(d)))) for d in drafts]

    clock, request = Clock(), DraftRequest(0, [1], REQUEST, 0)
    model = UncalibratedDrafter(clock, 0.002, rate=1.0)
    auto = AutoDrafter({}, {"model": model}, CostModel({size: memory_bound(size) for size in SIZES}), clock)
    simulate(auto, [request], memory_bound, clock, 12)
    assert len(model.batch_sizes) > 5
    assert len(request.token_ids) > 2 * 12


def test_drafting_starts_when_a_text_becomes_predictable() -> None:
    """Before that, the drafts are wrong for a long time, and none is verified."""
    clock, request = Clock(), DraftRequest(0, [1], REQUEST, 0)
    text = TextDrafter(1.0, 8, lambda request: 0.97 if len(request.token_ids) > 1000 else 0.0)
    auto = World(compute_bound, 0.0, 0.0).auto(clock, text, PricedDrafter(clock, 0.01))
    sizes = simulate(auto, [request], compute_bound, clock, 1100)
    assert sum(sizes[500:1000]) < 1.05 * 500
    assert sum(sizes[-50:]) > 4 * 50


def test_a_drafter_that_becomes_better_than_the_chosen_one_is_chosen() -> None:
    """One drafter has a constant acceptance rate of 0.7, the other has 0 and later 1."""
    clock, request = Clock(), DraftRequest(0, [1], REQUEST, 0)
    usual, late = PricedDrafter(clock, 0.001, rate=0.7), PricedDrafter(clock, 0.001, draw=random.Random(5))
    auto = AutoDrafter({}, {"usual": usual, "late": late}, cost_model(memory_bound), clock)
    simulate(auto, [request], memory_bound, clock, 1000)
    before = len(late.batch_sizes)
    assert before < 50 < len(usual.batch_sizes)
    late.rate = 1.0
    simulate(auto, [request], memory_bound, clock, 4000)
    before = len(late.batch_sizes)
    simulate(auto, [request], memory_bound, clock, 100)
    assert len(late.batch_sizes) - before > 80, "the better drafter is not chosen"


def test_drafts_become_longer_when_a_drafter_becomes_better() -> None:
    """At first only the first draft token is right, later all of them."""
    clock, request, lengths = Clock(), DraftRequest(0, [1], REQUEST, 0), list[int]()

    class Improving(PricedDrafter):
        better = False

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            lengths.append(self.num_tokens)
            self.batch_sizes.append(len(requests))
            num_right = self.num_tokens if self.better else 1
            drafts = [target_tokens(request, num_right) + [-1] * (self.num_tokens - num_right) for request in requests]
            self.clock.now += self.seconds * self.num_tokens
            return [Draft.chain(tokens) for tokens in drafts]

    model = Improving(clock, 0.004)
    auto = AutoDrafter({}, {"model": model}, cost_model(memory_bound), clock)
    simulate(auto, [request], memory_bound, clock, 1000)
    assert sum(lengths[-300:]) < 1.3 * 300
    model.better = True
    simulate(auto, [request], memory_bound, clock, 1000)
    assert sum(lengths[-300:]) > 5 * 300


@pytest.mark.parametrize(("limit", "longest"), [(1, 1), (3, 3), (5, 5), (None, 6)])
def test_no_draft_is_longer_than_the_option_allows(limit: int | None, longest: int) -> None:
    """The drafter is always right and nearly free; its longest draft has 6 tokens."""
    clock, lengths = Clock(), set[int]()

    class RecordingDrafter(PricedDrafter):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            lengths.add(self.num_tokens)
            return super().draft(requests)

    auto = AutoDrafter({}, {"model": RecordingDrafter(clock, 1e-6, rate=1.0)}, cost_model(memory_bound), clock, num_tokens=limit)
    simulate(auto, [DraftRequest(0, [1], REQUEST, 0)], memory_bound, clock, 400)
    assert max(lengths) == longest


def test_empty_drafts_count_against_a_drafter() -> None:
    """The drafts are always right, but exist in 40 % of the rounds; each round takes a third of a step."""
    clock, request = Clock(), DraftRequest(0, [1], REQUEST, 0)
    draw = random.Random(3)

    class SparseDrafter(PricedDrafter):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            drafts = super().draft(requests)
            return [draft if draw.random() < 0.4 else NO_DRAFT for draft in drafts]

    sparse = SparseDrafter(clock, 0.006, rate=1.0, draft_lengths=(1,))
    auto = AutoDrafter({}, {"model": sparse}, cost_model(memory_bound), clock)
    simulate(auto, [request], memory_bound, clock, 1000)
    assert len(sparse.batch_sizes) < 150
    assert len(request.token_ids) / clock.now > 0.97 / memory_bound(1)


def test_nothing_is_drafted_beyond_max_tokens() -> None:
    request = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams(max_tokens=4))
    auto = AutoDrafter({"text": TextDrafter(1.0, 8, lambda request: 1.0)}, {}, CostModel({1: 1.0, 64: 1.001}), Clock())
    drafts = [auto.propose([DraftRequest(i, [1] * (1 + i), request, 0)], NO_TARGET_OUTPUT)[0] for i in range(4)]
    assert [len(draft) for draft in drafts] == [3, 2, 1, 0]


def test_the_end_of_an_output_does_not_affect_the_start_of_the_next() -> None:
    clock = Clock()
    text = TextDrafter(1.0, 8, lambda request: 0.97 if len(request.token_ids) > 32 else 0.0)
    auto = World(compute_bound, 0.0, 0.0).auto(clock, text, PricedDrafter(clock, 0.01))
    sizes = [simulate(auto, [DraftRequest(i, [1], REQUEST, 0)], compute_bound, clock, 100) for i in range(8)]
    assert sum(sizes[-1][:30]) < 1.2 * 30 and sum(sizes[-1][-30:]) > 3 * 30


def test_only_the_best_part_of_a_tree_is_verified() -> None:
    class TreeDrafter(TextDrafter):
        def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
            return [Draft((1, 2, 3, 4), (-1, 0, -1, 1)) for _ in requests]

    costs = CostModel({1: 1.0, 2: 1.001, 64: 64.0})
    auto = AutoDrafter({"tree": TreeDrafter(1.0, 0, lambda request: 0.0)}, {}, costs, Clock())
    (draft,) = auto.propose([DraftRequest(0, [1], REQUEST, 0)], NO_TARGET_OUTPUT)
    assert draft == Draft((1,), (-1,))


def test_the_acceptance_probabilities_of_a_draft_are_used() -> None:
    """The second token, of probability 0.01, costs more than it brings."""

    class CalibratedDrafter(TextDrafter):
        def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
            return [Draft((1, 2), (-1, 0), acceptance_probs=(0.9, 0.01)) for _ in requests]

    costs = CostModel({1: 1.0, 3: 1.3})
    auto = AutoDrafter({"text": CalibratedDrafter(1.0, 0, lambda request: 0.0)}, {}, costs, Clock())
    assert auto.propose([DraftRequest(0, [1], REQUEST, 0)], NO_TARGET_OUTPUT) == [Draft.chain([1])]
