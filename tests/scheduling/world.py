"""A whole engine around the oracle model, driven by a seed: random settings, random requests, every answer checked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft
from hasten.core.errors import PromptTooLong
from hasten.core.output import Delta, RequestOutput
from hasten.core.plan import BlockCopy
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.engine.engine import Engine
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

from .oracle import INJECTED, VOCABULARY, OracleRunner, SingleThreadDrafter

FEATURES = ("prefix cache", "salt", "chunking", "preemption", "fork", "beam", "abort", "priority", "draft", "exit")
GROUPS = (KvGroup((0, 2), 1, 4), KvGroup((1, 3), 1, 4, window=7))
EOS = 0
MAX_LENGTH = 96


class FailingSpace(KvCacheManager):
    """A KV space whose next reservation can be made to find no block, whatever the pool has."""

    fail_next = False

    def reserve(self, sequence_id: int, start: int, stop: int) -> list[BlockCopy] | None:
        if self.fail_next:
            self.fail_next = False
            return None
        return super().reserve(sequence_id, start, stop)


class WrongToken(AssertionError):
    """An answer of the engine differs from what the request gives alone."""


class Guesser:
    """A ``Drafter`` that knows the answers and lies about their ends; or guesses nothing, or more than anybody asked for.

    What it knows and its lies grow on one tree, the truth anywhere among them.
    """

    aux_layer_indices = ()

    def __init__(self, draw: random.Random, alone: SingleThreadDrafter) -> None:
        self._draw, self._alone = draw, alone
        self._answers: dict[str, list[tuple[int, ...]]] = {}

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        return [self._guess(line) for line in lines]

    def _guess(self, line: DraftRequest) -> Draft:
        request = line.request
        if request.request_id not in self._answers:
            self._answers[request.request_id] = self._alone.answers(request)
        done = len(line.token_ids) - len(request.prompt_token_ids)
        right = self._answers[request.request_id][line.answer_index][done : done + self._draw.choice((0, 1, 2, 5))]
        lies = [self._draw.randrange(VOCABULARY) for _ in range(self._draw.choice((0, 1, 3)))]
        if self._draw.random() < 0.4:
            return Draft.chain([*right, *lies])
        return random_tree(self._draw, right, self._draw.choice((1, 4, 9)))


def random_tree(draw: random.Random, right: Sequence[int], num_lies: int) -> Draft:
    """A tree of a chain and lies that hang on whatever was there before them."""
    nodes: list[tuple[int, int]] = []  # (token, parent)
    known = -1  # the last node of the chain so far
    left = list(right)
    while left or num_lies:
        truth = bool(left) and (draw.random() < 0.5 or not num_lies)
        parent = known if truth else draw.randrange(-1, len(nodes))
        token = left.pop(0) if truth else draw.randrange(VOCABULARY)
        num_lies -= not truth
        if (token, parent) in nodes:
            known = nodes.index((token, parent)) if truth else known
            continue
        nodes.append((token, parent))
        known = len(nodes) - 1 if truth else known
    return Draft(tuple(token for token, _ in nodes), tuple(parent for _, parent in nodes))


@dataclass
class World:
    """``wanted`` switches features on; ``seen`` says which of them really happened."""

    seed: int
    wanted: frozenset[str]
    seen: set[str] = field(default_factory=set)
    finished: int = 0
    wrong: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 0.0
        block_size = self.random.choice((2, 4, 5))
        config = SchedulerConfig(
            max_num_seqs=self.random.choice((6, 9)),
            max_num_batched_tokens=self.random.choice((9, 13)) if "chunking" in self.wanted else 400,
            max_model_len=MAX_LENGTH,
            scheduling_policy="priority" if "priority" in self.wanted else "fcfs",
            priority_seconds=20.0,
            prefix_caching="prefix cache" in self.wanted,
        )
        largest = 45 if "preemption" in self.wanted else 60  # tokens of one request
        # Down to pools that hold one large request exactly, where progress depends on what exactly is shared.
        tokens = self.random.choice((2, 4)) * largest if "preemption" in self.wanted else 12 * MAX_LENGTH
        num_blocks = tokens // block_size + 3
        self.largest = largest
        self.kv = FailingSpace(GROUPS, num_blocks, block_size, keep_cached=config.prefix_caching)
        self.scheduler = Scheduler(config, self.kv)
        self.runner = OracleRunner(GROUPS, num_blocks, block_size, self._tenant)
        self.alone = SingleThreadDrafter(GROUPS)
        drafter = Guesser(self.random, self.alone) if "draft" in self.wanted else None
        self.engine = Engine(self.runner, self.scheduler, lambda request: None, Sampler(), drafter, clock=lambda: self.now)
        self.requests: dict[str, Request] = {}
        self._stems = [self._tokens(self.random.randint(8, 24)) for _ in range(3)]
        self._num_requests = 0

    def step(self) -> None:
        """One step of the engine; every block must be accounted for after it."""
        self.now += 1.0
        self._take(self.engine.step())
        self.kv.check()

    def add(self) -> bool:
        """Add a random request. False if the engine refused it, which it may do for large ones only."""
        request = self._request()
        try:
            self.engine.add(request)
        except PromptTooLong:
            return False
        self.requests[request.request_id] = request
        return True

    def abort(self) -> None:
        if self.requests:
            request_id = self.random.choice(sorted(self.requests))
            entry = self.scheduler.find_request(request_id)
            assert entry is not None
            self._take(self.engine.abort(request_id), aborted=True)
            self.seen.add("abort")
            self.kv.check()

    def preempt(self) -> None:
        """What the scheduler does when blocks run out, at a moment of our choosing."""
        running = self.scheduler._running
        if running:
            self.scheduler._preempt(self.random.choice(running))
            self.seen.add("preemption")
            self.kv.check()

    def drain(self, limit: int = 4000) -> None:
        """Every request must end within a bound, and nothing may be held after that."""
        for _ in range(limit):
            if not self.engine.unfinished:
                break
            self.step()
        assert not self.engine.unfinished, "requests starve"
        assert all(allocator.num_held == 0 for allocator in self.kv.allocators), "blocks are held by nobody"

    def run(self, steps: int) -> World:
        """``steps`` steps under a load that keeps the engine busy."""
        for _ in range(steps):
            if len(self.requests) < 8 and self.random.random() < 0.6:
                self.add()
            if "abort" in self.wanted and self.random.random() < 0.03:
                self.abort()
            if "preemption" in self.wanted and self.random.random() < 0.01:
                self.preempt()
            self.step()
        self.drain()
        return self

    def _take(self, deltas: list[Delta], *, aborted: bool = False) -> None:
        for delta in deltas:
            if delta.output is not None:
                request = self.requests.pop(delta.request_id)
                self._judge(request, delta.output, aborted)

    def _judge(self, request: Request, output: RequestOutput, aborted: bool) -> None:
        if output.error is not None and INJECTED not in output.error:
            raise WrongToken(f"seed {self.seed}: {output.error}")
        self.finished += 1
        expected = self.alone.answers(request)
        for answer, right in zip(output.outputs, expected, strict=True):
            ended = answer.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
            if answer.token_ids != (right if ended or not (aborted or output.error) else right[: len(answer.token_ids)]):
                self.wrong += 1
                raise WrongToken(f"seed {self.seed}: {request}\ngot      {answer.token_ids}\nexpected {right}")
        metrics, params = output.metrics, request.params
        if params.exit_rule != "none":
            layers = [answer.exit_layers for answer in output.outputs]
            right_layers = [self.alone.depths_and_tokens(request, answer.index)[0] for answer in output.outputs]
            if layers != [right[: len(own)] for own, right in zip(layers, right_layers, strict=True)]:
                raise WrongToken(f"seed {self.seed}: {request}\ngot layers {layers}\nexpected {right_layers}")
            self.seen |= {"exit"} if 1 in {layer for own in layers for layer in own} else set()
        self.seen |= {"prefix cache"} if metrics.num_cached_tokens and "prefix cache" in self.wanted else set()
        self.seen |= {"preemption"} if metrics.num_preemptions else set()
        self.seen |= {"fork"} if params.n > 1 and params.beam_width is None else set()
        self.seen |= {"beam"} if params.beam_width else set()
        self.seen |= {"priority"} if request.priority else set()
        self.seen |= {"draft"} if 0 < metrics.num_accepted_tokens < metrics.num_drafted_tokens else set()
        self.seen |= {"salt"} if request.cache_salt else set()
        longest = len(request.prompt_token_ids)
        self.seen |= {"chunking"} if longest > self.scheduler.config.max_num_batched_tokens else set()

    def _request(self) -> Request:
        draw = self.random
        prompt = draw.choice(self._stems)[: draw.randint(1, 24)] + self._tokens(draw.randint(0, 8))
        prompt = prompt or self._tokens(1)
        self._num_requests += 1
        params = self._params(min(24, self.largest - len(prompt)))
        return Request(
            request_id=f"r{self._num_requests}",
            prompt_token_ids=tuple(prompt),
            params=params,
            exit_layer=params.exit_layer,
            eos_token_ids=(EOS,),
            priority=draw.randint(-1, 2) if "priority" in self.wanted else 0,
            arrival=self.now,
            cache_salt=draw.choice(("", "red", "blue")) if "salt" in self.wanted else "",
        )

    def _params(self, room: int) -> SamplingParams:
        draw = self.random
        settings: dict[str, object] = {
            "max_tokens": draw.randint(1, max(1, room)),
            "seed": draw.getrandbits(40),
            "temperature": draw.choice((0.0, 0.0, 0.8, 1.5)),
            "ignore_eos": draw.random() < 0.3,
        }
        if draw.random() < 0.2:
            settings |= {"repetition_penalty": 1.2, "min_tokens": 1}
        if "beam" in self.wanted and draw.random() < 0.3:
            width = draw.randint(1, 4)
            settings |= {"beam_width": width, "n": draw.randint(1, width), "temperature": 1.0}
            settings |= {"early_stopping": draw.choice((True, False, "never")), "length_penalty": draw.choice((0.0, 1.0))}
        elif "fork" in self.wanted and draw.random() < 0.3:
            settings |= {"n": draw.randint(2, 4), "temperature": 1.2}
        if "exit" in self.wanted and "beam_width" not in settings and draw.random() < 0.4:
            rule = draw.choice(("softmax", "entropy", "fixed"))
            settings |= {"exit_rule": rule, **({"exit_layer": 1} if rule == "fixed" else {"exit_threshold": 0.5})}
        return SamplingParams.from_dict(settings)

    def _tokens(self, count: int) -> list[int]:
        return [self.random.randrange(1, VOCABULARY) for _ in range(count)]

    def _tenant(self, sequence_id: int) -> str:
        return self.scheduler.sequence(sequence_id).request.cache_salt


def wanted_features(seed: int) -> frozenset[str]:
    """More than half of the features, each drawn on its own, so that in 300 seeds every pair meets often."""
    return frozenset(feature for feature in FEATURES if random.Random(f"3/{seed}/{feature}").random() < 0.6)
