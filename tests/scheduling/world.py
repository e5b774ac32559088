"""An engine around the oracle model: random settings and requests, and a check of every answer."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hasten.core.draft import Draft
from hasten.core.errors import CapacityError, PromptTooLong
from hasten.core.output import Delta, RequestOutput
from hasten.core.plan import BlockCopy
from hasten.core.request import PrefixPin, Request
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.engine.engine import Engine
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.kv.prefix_hash import cache_salt, extend_hashes
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.drafters.base import DraftRequest, TargetOutput

from .fault import Calls, raise_at_call
from .oracle import INJECTED, VOCAB_SIZE, OracleRunner, ReferenceModel, block_numbers

FEATURES = (
    *(
        "prefix cache",
        "salt",
        "chunking",
        "preemption",
        "fork",
        "beam",
        "abort",
        "priority",
        "draft",
        "exit",
        "saved prefix",
        "pin",
    ),
)
GROUPS = (KvGroup((0, 2), 1, 4), KvGroup((1, 3), 1, 4, window=7))
EOS = 0
MAX_LENGTH = 96
PIN_SECONDS = (3.0, 30.0, 1e6, 1e6)  # a step takes one second


class FailingKvCacheManager(KvCacheManager):
    """A KV cache manager whose next reservation can be made to find no block."""

    fail_next = False

    def reserve(self, sequence_id: int, start: int, stop: int) -> list[BlockCopy] | None:
        if self.fail_next:
            self.fail_next = False
            return None
        return super().reserve(sequence_id, start, stop)


class WrongToken(AssertionError):
    """An answer of the engine differs from that of the reference model."""


class OracleDrafter:
    """A ``Drafter`` that knows the answers and adds wrong tokens; some drafts are empty or too long."""

    aux_layer_indices = ()

    def __init__(self, draw: random.Random, reference: ReferenceModel) -> None:
        self._draw, self._reference = draw, reference
        self._outputs: dict[str, list[tuple[int, ...]]] = {}

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        return [self._propose(request) for request in requests]

    def _propose(self, draft_request: DraftRequest) -> Draft:
        request = draft_request.request
        if request.request_id not in self._outputs:
            self._outputs[request.request_id] = self._reference.outputs(request)
        done = len(draft_request.token_ids) - len(request.prompt_token_ids)
        output = self._outputs[request.request_id][draft_request.output_index]
        right = output[done : done + self._draw.choice((0, 1, 2, 5))]
        wrong = [self._draw.randrange(VOCAB_SIZE) for _ in range(self._draw.choice((0, 1, 3)))]
        if self._draw.random() < 0.4:
            return Draft.chain([*right, *wrong])
        return random_tree(self._draw, right, self._draw.choice((1, 4, 9)))


def random_tree(draw: random.Random, right: Sequence[int], num_wrong: int) -> Draft:
    """Return a tree of the chain ``right`` and of ``num_wrong`` random tokens at random nodes."""
    nodes: list[tuple[int, int]] = []  # (token, parent)
    chain_end = -1  # the last node of the chain so far
    remaining = list(right)
    while remaining or num_wrong:
        is_right = bool(remaining) and (draw.random() < 0.5 or not num_wrong)
        parent = chain_end if is_right else draw.randrange(-1, len(nodes))
        token = remaining.pop(0) if is_right else draw.randrange(VOCAB_SIZE)
        num_wrong -= not is_right
        if (token, parent) in nodes:
            chain_end = nodes.index((token, parent)) if is_right else chain_end
            continue
        nodes.append((token, parent))
        chain_end = len(nodes) - 1 if is_right else chain_end
    return Draft(tuple(token for token, _ in nodes), tuple(parent for _, parent in nodes))


@dataclass(frozen=True)
class SavedPrefix:
    """What a file of KV blocks holds, and the tenant that saved it, which a file does not tell."""

    token_ids: tuple[int, ...]
    tenant: str
    numbers: list[np.ndarray]  # per group [block, slot, layer], of the blocks that the token after the prefix attends to


@dataclass
class World:
    """``enabled`` features may happen; ``seen`` ones have happened."""

    seed: int
    enabled: frozenset[str]
    seen: set[str] = field(default_factory=set)
    finished: int = 0
    failed: int = 0  # requests that ended with an error
    wrong: int = 0
    faulty: bool = False  # whether a test has planted an exception, so that requests may fail

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 0.0
        block_size = self.random.choice((2, 4, 5))
        config = SchedulerConfig(
            max_num_seqs=self.random.choice((6, 9)),
            max_num_batched_tokens=self.random.choice((9, 13)) if "chunking" in self.enabled else 400,
            max_model_len=MAX_LENGTH,
            scheduling_policy="priority" if "priority" in self.enabled else "fcfs",
            priority_seconds=20.0,
            prefix_caching=bool({"prefix cache", "pin"} & self.enabled),
        )
        self.max_request_tokens = 45 if "preemption" in self.enabled else 60
        # The smallest pool holds exactly one large request; progress then depends on which blocks are shared.
        pool_tokens = self.random.choice((2, 4)) * self.max_request_tokens if "preemption" in self.enabled else 12 * MAX_LENGTH
        num_blocks = pool_tokens // block_size + 3
        self._draw_pins = random.Random(f"pins/{self.seed}")  # of its own, so that a world without pins has the same requests
        max_pins, share = self._draw_pins.choice(((3, 1.0), (32, 0.2), (32, 1.0), (32, 1.0)))  # pins may take the entire pool
        self.kv = FailingKvCacheManager(
            GROUPS, num_blocks, block_size, keep_cached=config.prefix_caching, max_pins=max_pins, max_pinned_share=share
        )
        self._pinned: dict[bytes, list[bytes]] = {}  # the last block of each prefix that a request pins -> all its blocks
        self.scheduler = Scheduler(config, self.kv)
        self.runner = OracleRunner(GROUPS, num_blocks, block_size, self._tenant)
        self.reference = ReferenceModel(GROUPS)
        drafter = OracleDrafter(self.random, self.reference) if "draft" in self.enabled else None
        self.engine = Engine(self.runner, self.scheduler, lambda request: None, Sampler(), drafter, clock=lambda: self.now)
        self.requests: dict[str, Request] = {}
        self._stems = [self._tokens(self.random.randint(8, 24)) for _ in range(3)]
        self._num_requests = 0
        self._computing_tenant = ""  # of sequences that are not the scheduler's
        self._saved: list[SavedPrefix] = []

    def step(self) -> None:
        """Take one engine step; the block tables must be consistent after it."""
        self.now += 1.0
        self._take(self.engine.step())
        self.check()

    def check(self) -> None:
        """Assert that the block tables are consistent, and that the prefix cache holds every pinned prefix."""
        self.kv.check()
        counts, ends = self.kv.pins.counts, ("expired", "evicted", "dropped", "removed")
        assert counts["set"] == len(self.kv.pins) + sum(counts[end] for end in ends), "a pin is lost"
        for block_hash, hashes in self._pinned.items():
            if (pin := self.kv.pins.get(block_hash)) is not None:
                assert self.kv.match_prefix(hashes) == len(hashes), "a pinned prefix is not cached"
                assert pin.pinned_until > self.now, "a pin outlives its time"

    def step_with_fault(self, number: int, functions: Collection[str] = ()) -> Calls:
        """Take one step in which call ``number`` raises; see ``raise_at_call``."""
        self.faulty = True
        step, planted = self.engine._step, []

        def faulty_step(deltas: list[Delta]) -> None:
            with raise_at_call(number, functions) as calls:
                planted.append(calls)
                step(deltas)

        self.engine._step = faulty_step  # type: ignore[method-assign]
        try:
            self.step()
        finally:
            self.engine._step = step  # type: ignore[method-assign]
        return planted[0]

    def add(self) -> bool:
        """Add a random request. Return False if the engine refuses it, because it is too large."""
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
            assert request_id in self.scheduler._requests
            self._take(self.engine.abort(request_id), aborted=True)
            self.seen.add("abort")
            self.check()

    def preempt(self) -> None:
        """Preempt a random request, as the scheduler does when blocks run out."""
        running = self.scheduler._running
        if running:
            self.scheduler._preempt(self.random.choice(running))
            self.seen.add("preemption")
            self.check()

    def save(self) -> None:
        """Save a prefix as ``LLM.save_kv`` does; its numbers must be those of the reference model."""
        size, tenant = self.kv.block_size, self._draw_tenant()
        prompts = [*self._stems, *(request.prompt_token_ids for request in self.requests.values())]
        token_ids = tuple(self.random.choice(prompts)[: self.random.randint(1, 6) * size])
        token_ids = token_ids[: len(token_ids) // size * size]
        if not token_ids:
            return
        self._computing_tenant = tenant
        try:
            with self.engine.prefix_blocks().hold(token_ids, tenant) as tables:
                numbers = [self.runner.read_blocks(group, blocks) for group, blocks in enumerate(tables)]
        except CapacityError:
            return
        finally:
            self.check()
        expected = block_numbers(token_ids, tenant, size)
        for group, found in zip(GROUPS, numbers, strict=True):
            live = group.live_blocks(len(token_ids) // size, size)
            if found.tolist() != expected[live.start :].tolist():
                raise WrongToken(f"seed {self.seed}: saved {found.tolist()}\nexpected {expected[live.start :].tolist()}")
        self._saved.append(SavedPrefix(token_ids, tenant, numbers))

    def load(self) -> None:
        """Load a saved prefix for any tenant, as ``LLM.load_kv`` does, often after its blocks were removed."""
        if not self._saved:
            return
        saved, tenant, size = self.random.choice(self._saved), self._draw_tenant(), self.kv.block_size
        prefixes = self.engine.prefix_blocks()
        if self.random.random() < 0.4:
            prefixes.remove(saved.token_ids, tenant)
        # The numbers of a real model do not tell the tenant; these do, so they are written for the one that loads.
        translated = block_numbers(saved.token_ids, tenant, size)

        def write(new: Sequence[Mapping[int, int]]) -> None:
            for group, (blocks, numbers) in enumerate(zip(new, saved.numbers, strict=True)):
                first = len(translated) - len(numbers)
                source = numbers if tenant == saved.tenant else translated[first:]
                self.runner.write_blocks(group, list(blocks.values()), source[[i - first for i in blocks]])

        try:
            self.seen |= {"saved prefix"} if prefixes.insert(saved.token_ids, tenant, write) else set()
        except CapacityError:
            pass
        finally:
            self.check()

    def drain(self, limit: int = 1000) -> None:
        """Run until every request has ended, within ``limit`` steps; only pins may hold blocks afterwards."""
        for _ in range(limit):
            if not self.engine.has_unfinished_requests:
                break
            self.step()
        assert not self.engine.has_unfinished_requests, "requests starve"
        assert not self.requests, "requests got no last delta"
        for group, allocator in enumerate(self.kv.allocators):
            assert allocator.references() == self.kv.pins.references(group), "ended requests hold blocks"

    def expire_pins(self) -> None:
        """Wait until every pin has expired; no block may be held afterwards."""
        self.now += max(PIN_SECONDS)
        self._take(self.engine.step())
        assert all(allocator.num_held == 0 for allocator in self.kv.allocators), "expired pins hold blocks"

    def run(self, steps: int) -> World:
        """Take ``steps`` steps under a load that keeps the engine busy, then drain it."""
        for _ in range(steps):
            if len(self.requests) < 8 and self.random.random() < 0.6:
                self.add()
            if "abort" in self.enabled and self.random.random() < 0.03:
                self.abort()
            if "preemption" in self.enabled and self.random.random() < 0.01:
                self.preempt()
            if "saved prefix" in self.enabled and self.random.random() < 0.06:
                self.random.choice((self.save, self.load))()
            self.step()
        self.drain()
        self.expire_pins()
        return self

    def _take(self, deltas: list[Delta], *, aborted: bool = False) -> None:
        for delta in deltas:
            if delta.output is not None:
                request = self.requests.pop(delta.request_id)
                self._check(request, delta.output, aborted)

    def _check(self, request: Request, output: RequestOutput, aborted: bool) -> None:
        if output.error is not None and INJECTED not in output.error and not self.faulty:
            raise WrongToken(f"seed {self.seed}: {output.error}")
        self.finished += 1
        if output.error is not None and self.faulty:
            self.failed += 1
            return  # an interrupted beam search has no answers yet
        for answer, expected in zip(output.outputs, self.reference.outputs(request), strict=True):
            ended = answer.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
            is_partial = not ended and (aborted or output.error is not None)
            if answer.token_ids != (expected[: len(answer.token_ids)] if is_partial else expected):
                self.wrong += 1
                raise WrongToken(f"seed {self.seed}: {request}\ngot      {answer.token_ids}\nexpected {expected}")
        metrics, params = output.metrics, request.params
        if params.exit_rule != "none":
            layers = [answer.exit_layers for answer in output.outputs]
            expected_layers = [self.reference.layers_and_tokens(request, answer.index)[0] for answer in output.outputs]
            if layers != [expected[: len(own)] for own, expected in zip(layers, expected_layers, strict=True)]:
                raise WrongToken(f"seed {self.seed}: {request}\ngot layers {layers}\nexpected {expected_layers}")
            self.seen |= {"exit"} if 1 in {layer for own in layers for layer in own} else set()
        self.seen |= {"prefix cache"} if metrics.num_cached_tokens and "prefix cache" in self.enabled else set()
        self.seen |= {"preemption"} if metrics.num_preemptions else set()
        self.seen |= {"fork"} if params.n > 1 and params.beam_width is None else set()
        self.seen |= {"beam"} if params.beam_width else set()
        self.seen |= {"priority"} if request.priority else set()
        self.seen |= {"draft"} if 0 < metrics.num_accepted_tokens < metrics.num_drafted_tokens else set()
        self.seen |= {"salt"} if request.cache_salt else set()
        self.seen |= {"pin"} if self.kv.pins.counts["hits"] else set()
        num_prompt = len(request.prompt_token_ids)
        self.seen |= {"chunking"} if num_prompt > self.scheduler.config.max_num_batched_tokens else set()

    def _request(self) -> Request:
        draw = self.random
        prompt = draw.choice(self._stems)[: draw.randint(1, 24)] + self._tokens(draw.randint(0, 8))
        prompt = prompt or self._tokens(1)
        self._num_requests += 1
        params = self._params(min(24, self.max_request_tokens - len(prompt)))
        request = Request(
            request_id=f"r{self._num_requests}",
            prompt_token_ids=tuple(prompt),
            params=params,
            exit_layer=params.exit_layer,
            eos_token_ids=(EOS,),
            priority=draw.randint(-1, 2) if "priority" in self.enabled else 0,
            arrival=self.now,
            cache_salt=self._draw_tenant(),
        )
        return self._add_pins(request) if "pin" in self.enabled else request

    def _add_pins(self, request: Request) -> Request:
        draw, prompt, size = self._draw_pins, request.prompt_token_ids, self.kv.block_size
        lengths = [draw.choice((len(prompt), draw.randint(1, len(prompt)))) for _ in range(draw.choice((0, 1, 1, 2)))]
        hashes: list[bytes] = []
        extend_hashes(hashes, cache_salt(request.cache_salt, request.exit_layer), prompt, size)
        self._pinned |= {hashes[n // size - 1]: hashes[: n // size] for n in lengths if n >= size}
        pins = tuple(PrefixPin(num_tokens=length, seconds=draw.choice(PIN_SECONDS)) for length in lengths)
        return replace(request, pins=pins)

    def _params(self, max_tokens: int) -> SamplingParams:
        draw = self.random
        settings: dict[str, object] = {
            "max_tokens": draw.randint(1, max(1, max_tokens)),
            "seed": draw.getrandbits(40),
            "temperature": draw.choice((0.0, 0.0, 0.8, 1.5)),
            "ignore_eos": draw.random() < 0.3,
        }
        if draw.random() < 0.2:
            settings |= {"repetition_penalty": 1.2, "min_tokens": 1}
        if "beam" in self.enabled and draw.random() < 0.3:
            width = draw.randint(1, 4)
            settings |= {"beam_width": width, "n": draw.randint(1, width), "temperature": 1.0}
            settings |= {"early_stopping": draw.choice((True, False, "never")), "length_penalty": draw.choice((0.0, 1.0))}
        elif "fork" in self.enabled and draw.random() < 0.3:
            settings |= {"n": draw.randint(2, 4), "temperature": 1.2}
        if "exit" in self.enabled and "beam_width" not in settings and draw.random() < 0.4:
            rule = draw.choice(("softmax", "entropy", "fixed"))
            settings |= {"exit_rule": rule, **({"exit_layer": 1} if rule == "fixed" else {"exit_threshold": 0.5})}
        return SamplingParams.from_dict(settings)

    def _tokens(self, count: int) -> list[int]:
        return [self.random.randrange(1, VOCAB_SIZE) for _ in range(count)]

    def _tenant(self, sequence_id: int) -> str:
        return self._computing_tenant if sequence_id < 0 else self.scheduler.sequence(sequence_id).request.cache_salt

    def _draw_tenant(self) -> str:
        return self.random.choice(("", "red", "blue")) if "salt" in self.enabled else ""


def random_features(seed: int) -> frozenset[str]:
    """Return about 60 % of the features, drawn independently: every pair occurs often in 300 seeds."""
    return frozenset(feature for feature in FEATURES if random.Random(f"3/{seed}/{feature}").random() < 0.6)
