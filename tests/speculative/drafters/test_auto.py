"""``Auto`` in a simulated world of known costs and known chances: never far from plain decoding, nor from the best that one
drafter does.

Time is counted, not measured: a step of n tokens takes what the world says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, Drafter, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.outlook import Outlook, verdicts
from hasten.speculative.policy import ASKED, FORESEEN, NO_OFFER, Auto
from hasten.speculative.step_costs import StepCosts

REQUEST = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams(max_tokens=100_000))
SIZES = (1, 2, 4, 8, 16, 32, 64)


def memory_bound(num_tokens: int) -> float:
    """Nearly free up to eight tokens: a large model on a small processor."""
    return 0.020 + 0.0002 * num_tokens + 0.0018 * max(0, num_tokens - 8)


def compute_bound(num_tokens: int) -> float:
    return 0.002 + 0.003 * num_tokens


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def written(line: DraftRequest, count: int) -> list[int]:
    """What the model will write next, whoever guesses."""
    return [7 * line.sequence_id + 3 * i for i in range(len(line.token_ids), len(line.token_ids) + count)]


def guess(line: DraftRequest, count: int, chance: float, draw: random.Random) -> Draft:
    """Each token is right with that chance where those before it are."""
    right = next((i for i in range(count) if draw.random() >= chance), count)
    return Draft.chain([*written(line, right), *[-1] * (count - right)])


def play(
    drafter: Drafter | None, lines: Sequence[DraftRequest], costs: Callable[[int], float], clock: Clock, rounds: int
) -> list[int]:
    """The tokens of each step: every line takes what is right of its guess, and one token more."""
    sizes = [0]
    for _ in range(rounds):
        drafts = drafter.propose(lines, TargetOutput(sizes[-1])) if drafter else [NO_DRAFT] * len(lines)
        sizes.append(len(lines) + sum(map(len, drafts)))
        clock.now += costs(sizes[-1])
        for line, draft in zip(lines, drafts, strict=True):
            line.token_ids.extend(written(line, 1 + len(draft.path(written(line, len(draft))))))
    return sizes[1:]


@dataclass
class Text:
    """Guesses for a share of the lines."""

    available: float
    length: int
    chance: Callable[[DraftRequest], float]
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    aux_layer_indices: tuple[int, ...] = ()

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        return [self._guess(line) if self.draw.random() < self.available else NO_DRAFT for line in lines]

    def _guess(self, line: DraftRequest) -> Draft:
        return guess(line, self.length, self.chance(line), self.draw)


@dataclass
class Model(ModelDrafter):
    """Guesses for all lines, at a price."""

    clock: Clock
    seconds: float
    chance: float = 0.0
    num_tokens: int = 4
    draw: random.Random = field(default_factory=lambda: random.Random(2))
    aux_layer_indices: tuple[int, ...] = ()
    asked: list[int] = field(default_factory=list)  # for how many lines
    lengths: tuple[int, ...] = (1, 2, 3, 4, 6)

    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None: ...

    def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
        self.clock.now += self.seconds * self.num_tokens
        self.asked.append(len(lines))
        return [guess(line, self.num_tokens, self.chance, self.draw) for line in lines]

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self.seconds * num_tokens if min(self.asked, default=99) <= num_lines else None

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        return 0.0

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))


@dataclass
class World:
    costs: Callable[[int], float]
    text: float  # the chance of a token guessed from text, where those before it were right
    model: float
    available: float = 0.5
    model_seconds: float = 0.002

    def rate(self, batch: int, policy: Callable[[Clock, Text, Model], Drafter | None], rounds: int = 300) -> float:
        """Tokens a second."""
        clock, lines = Clock(), [DraftRequest(i, [1], REQUEST, 0) for i in range(batch)]
        drafter = policy(clock, Text(self.available, 8, lambda line: self.text), Model(clock, self.model_seconds, self.model))
        play(drafter, lines, self.costs, clock, rounds)
        return sum(len(line.token_ids) - 1 for line in lines) / clock.now

    def auto(self, clock: Clock, text: Text, model: Model) -> Auto:
        return Auto({"text": text}, {"model": model}, StepCosts({size: self.costs(size) for size in SIZES}), clock)


def model_of(length: int) -> Callable[[Clock, Text, Model], Model]:
    def policy(clock: Clock, text: Text, model: Model) -> Model:
        model.num_tokens = length
        return model

    return policy


FIXED: dict[str, Callable[[Clock, Text, Model], Drafter | None]] = {
    "off": lambda clock, text, model: None,
    "text": lambda clock, text, model: text,
    "model 2": model_of(2),
    "model 4": model_of(4),
}


@pytest.mark.parametrize("costs", [memory_bound, compute_bound])
@pytest.mark.parametrize("batch", [1, 4, 32])
def test_it_is_as_good_as_the_best_and_never_worse_than_none(costs: Callable[[int], float], batch: int) -> None:
    for text, model in itertools.product((0.05, 0.5, 0.9), repeat=2):
        world = World(costs, text, model)
        rates = {name: world.rate(batch, policy) for name, policy in FIXED.items()}
        mine = world.rate(batch, world.auto)
        assert mine >= 0.97 * rates["off"], (text, model, rates, mine)
        assert mine >= 0.92 * max(rates.values()), (text, model, rates, mine)


@pytest.mark.parametrize(("chance", "pays"), [(0.05, False), (0.95, True)])
def test_a_drafter_that_does_not_pay_shows_itself_on_one_line(chance: float, pays: bool) -> None:
    models: list[Model] = []
    world = World(memory_bound, 0.05, chance)

    def policy(clock: Clock, text: Text, model: Model) -> Auto:
        models.append(model)
        return world.auto(clock, text, model)

    world.rate(4, policy)
    (model,) = models
    assert model.asked[0] == 1  # what it can do is not known yet
    if pays:
        assert model.asked.count(4) > 100
    else:
        assert model.asked.count(4) < 5 and set(model.asked[8:]) == {1}


def test_what_has_to_be_read_is_asked_after_the_step_was_seen() -> None:
    """Else a prompt that has just been computed would count for nothing."""
    events: list[str] = []

    class Reader(Model):
        def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
            events.append("watch")

        def backlog(self, lines: Sequence[DraftRequest]) -> float:
            events.append("backlog")
            return 0.0

    clock, line = Clock(), DraftRequest(0, [1], REQUEST, 0)
    auto = Auto({}, {"reader": Reader(clock, 0.001)}, StepCosts({1: 0.02, 64: 0.03}), clock)
    num_tokens = rounds = 0
    while events.count("backlog") < 5:
        events.append("round")
        (draft,) = auto.propose([line], TargetOutput(num_tokens))
        num_tokens, rounds = 1 + len(draft), rounds + 1
        clock.now += 0.02
        line.token_ids.extend([*draft.token_ids, 7])
    assert [after for before, after in itertools.pairwise(events) if before == "round"] == ["watch"] * rounds


@pytest.mark.parametrize(("share", "asked"), [(0.0, "model"), (0.5, "model"), (0.97, None), (1.1, None)])
def test_what_is_read_first_must_pay_by_a_margin(share: float, asked: str | None) -> None:
    """``share``: of all the time that guesses seem to save, the part that reading takes."""
    step, length = 0.02, 6

    class Reader(Model):
        def backlog(self, lines: Sequence[DraftRequest]) -> float:
            return share * (plain - plain / step * seconds)

    model = Reader(Clock(), 0.002, asked=[1])
    auto = Auto({}, {"model": model}, StepCosts({1: step, 64: step}), model.clock)
    for _ in range(400):  # six of six guesses were right
        auto._outlook("model", ASKED).note(dict.fromkeys(range(length), True))
    auto._rates.note(1, step)
    line = DraftRequest(0, [1], REQUEST, 0)
    plain, seconds = FORESEEN * step, (step + length * model.seconds) / (1 + length)
    assert auto._choose([NO_OFFER], [line]) == (asked, length if asked else 0, False)


def test_it_follows_a_text_that_turns_predictable() -> None:
    """After a long time of wrong guesses, in which none was verified."""
    clock, line = Clock(), DraftRequest(0, [1], REQUEST, 0)
    text = Text(1.0, 8, lambda line: 0.97 if len(line.token_ids) > 1000 else 0.0)
    sizes = play(World(compute_bound, 0.0, 0.0).auto(clock, text, Model(clock, 0.01)), [line], compute_bound, clock, 1100)
    assert sum(sizes[500:1000]) < 1.05 * 500
    assert sum(sizes[-50:]) > 4 * 50


@pytest.mark.parametrize(("seconds", "verified"), [(1.3, 1), (1.4, 0)])
def test_a_step_with_guesses_must_seem_to_bring_a_tenth_more(seconds: float, verified: int) -> None:
    """Of one guess, taken to be right half of the time: 1.5 tokens in so many seconds, beside one in one."""
    auto = Auto({"text": Text(1.0, 1, lambda line: 1.0)}, {}, StepCosts({1: 1.0, 2: seconds}), Clock())
    (draft,) = auto.propose([DraftRequest(0, [1], REQUEST, 0)], NO_TARGET_OUTPUT)
    assert len(draft) == verified


@pytest.mark.parametrize(("seconds", "asked"), [(0.08, ("model", 1)), (0.12, (None, 0))])
def test_a_drafter_is_asked_only_where_what_it_costs_leaves_that_tenth(seconds: float, asked: tuple[str | None, int]) -> None:
    """Of one guess that is always right: 2 tokens in 1.7 and so many seconds, beside one in one."""
    model = Model(Clock(), seconds, asked=[1], lengths=(1,))
    auto = Auto({}, {"model": model}, StepCosts({1: 1.0, 2: 1.7}), model.clock)
    for _ in range(400):
        auto._outlook("model", ASKED).note({0: True})
    assert auto._choose([NO_OFFER], [DraftRequest(0, [1], REQUEST, 0)]) == (*asked, False)


def test_a_drafter_that_has_become_better_than_the_chosen_one_is_found() -> None:
    """One is right in seven of ten places all the time, the other never and later always."""
    clock, line = Clock(), DraftRequest(0, [1], REQUEST, 0)
    usual, late = Model(clock, 0.001, chance=0.7), Model(clock, 0.001, draw=random.Random(5))
    auto = Auto({}, {"usual": usual, "late": late}, StepCosts({size: memory_bound(size) for size in SIZES}), clock)
    play(auto, [line], memory_bound, clock, 1000)
    before = len(late.asked)
    assert before < 50 < len(usual.asked)
    late.chance = 1.0
    play(auto, [line], memory_bound, clock, 4000)
    play_on = len(late.asked)
    play(auto, [line], memory_bound, clock, 100)
    assert len(late.asked) - play_on > 80, "it is the chosen one now"


@pytest.mark.parametrize(("most", "longest"), [(1, 1), (3, 3), (5, 5), (None, 6)])
def test_no_guess_is_longer_than_whoever_built_it_said(most: int | None, longest: int) -> None:
    """Of a model that is always right and costs next to nothing: 6 are the most that it can be asked for."""
    clock, asked = Clock(), set[int]()

    class Noted(Model):
        def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
            asked.add(self.num_tokens)
            return super().guess(lines)

    costs = StepCosts({size: memory_bound(size) for size in SIZES})
    auto = Auto({}, {"model": Noted(clock, 1e-6, chance=1.0)}, costs, clock, num_tokens=most)
    play(auto, [DraftRequest(0, [1], REQUEST, 0)], memory_bound, clock, 400)
    assert max(asked) == longest


def test_a_drafter_that_mostly_offers_nothing_is_judged_by_that_too() -> None:
    """What it offers is always right, but only in two rounds of five has it anything to offer, and each takes a third of a step."""
    clock, line = Clock(), DraftRequest(0, [1], REQUEST, 0)
    draw = random.Random(3)

    class Choosy(Model):
        def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
            drafts = super().guess(lines)
            return [draft if draw.random() < 0.4 else NO_DRAFT for draft in drafts]

    choosy = Choosy(clock, 0.006, chance=1.0, lengths=(1,))
    auto = Auto({}, {"model": choosy}, StepCosts({size: memory_bound(size) for size in SIZES}), clock)
    play(auto, [line], memory_bound, clock, 1000)
    assert len(choosy.asked) < 150
    assert len(line.token_ids) / clock.now > 0.97 / memory_bound(1)


def test_nothing_is_guessed_beyond_the_end_of_an_answer() -> None:
    request = Request(request_id="r", prompt_token_ids=(1,), params=SamplingParams(max_tokens=4))
    auto = Auto({"text": Text(1.0, 8, lambda line: 1.0)}, {}, StepCosts({1: 1.0, 64: 1.001}), Clock())
    drafts = [auto.propose([DraftRequest(i, [1] * (1 + i), request, 0)], NO_TARGET_OUTPUT)[0] for i in range(4)]
    assert [len(draft) for draft in drafts] == [3, 2, 1, 0]


def test_the_end_of_an_answer_tells_nothing_of_the_beginning_of_the_next() -> None:
    clock = Clock()
    auto = World(compute_bound, 0.0, 0.0).auto(
        clock, Text(1.0, 8, lambda line: 0.97 if len(line.token_ids) > 32 else 0.0), Model(clock, 0.01)
    )
    sizes = [play(auto, [DraftRequest(i, [1], REQUEST, 0)], compute_bound, clock, 100) for i in range(8)]
    assert sum(sizes[-1][:30]) < 1.2 * 30 and sum(sizes[-1][-30:]) > 3 * 30


def test_of_a_tree_the_likeliest_beginning_is_kept() -> None:
    clock = Clock()

    class Tree(Text):
        def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
            return [Draft((1, 2, 3, 4), (-1, 0, -1, 1)) for _ in lines]

    auto = Auto({"tree": Tree(1.0, 0, lambda line: 0.0)}, {}, StepCosts({1: 1.0, 2: 1.001, 64: 64.0}), clock)
    (draft,) = auto.propose([DraftRequest(0, [1], REQUEST, 0)], NO_TARGET_OUTPUT)
    assert draft == Draft((1,), (-1,))


def test_the_text_says_which_guesses_were_right() -> None:
    tree = Draft((5, 6, 7, 8, 9), (-1, 0, -1, 1, 2))
    assert verdicts(tree, ()) == dict.fromkeys(range(5), None)
    assert verdicts(tree, (5,)) == {0: True, 1: None, 2: False, 3: None}
    assert verdicts(tree, (5, 6, 1, 1)) == {0: True, 1: True, 2: False, 3: False}
    assert verdicts(tree, (7, 9)) == {0: False, 2: True, 4: True}
    assert verdicts(tree, (1, 6)) == {0: False, 2: False}


def test_an_outlook_counts_a_guess_only_where_its_parent_was_right() -> None:
    outlook, tree = Outlook(), Draft((1, 2, 3), (-1, 0, -1))
    for _ in range(200):
        outlook.note(verdicts(tree, (9, 9)))
    for _ in range(200):
        outlook.note(verdicts(tree, (1, 2, 9)))
    first, second, other = outlook.chances(tree)
    assert first > 0.9 and second > 0.9 and other < 0.1


def test_what_was_long_not_told_is_taken_to_be_like_the_rest() -> None:
    outlook, chain = Outlook(), Draft.chain((1, 2))
    for _ in range(200):
        outlook.note(verdicts(chain, (1, 9)))
    assert outlook.chances(chain)[1] < 0.1
    for _ in range(200):
        outlook.note(verdicts(chain, (1,)))
    assert outlook.chances(chain)[1] > 0.8
