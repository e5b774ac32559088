"""A model whose every token tells whether the KV blocks were right.

Instead of keys and values, a slot of the pool holds a number that depends on all tokens up to its position and on the tenant.
A row of logits depends on every slot that the query can see, read back through the block table. So a stale block, a skipped
copy, a dropped salt or a position that is off by one shows as a wrong token. ``SingleThreadDrafter`` computes what the same request gives
with no pool, no batch and no scheduler at all.

The model has two layers, each with a number in every slot. A token may leave after the first one: its logits depend on the
numbers of that layer alone, and its number in the second one says so, or is never written where nobody of its sequence goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import torch

from hasten.core.early_exit import REQUEST_CRITERIA, ExitCriterion
from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.engine.request_state import beam_search
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.search.candidates import best_candidates

VOCABULARY = 24
NUM_LAYERS = 2
MASK = (1 << 63) - 1
INJECTED = "injected by the test"
_generator = np.random.default_rng(7)
LOGITS = torch.tensor(_generator.normal(0, 2.0, size=(4099, VOCABULARY)), dtype=torch.float32)
WEIGHTS = _generator.integers(1, 1 << 62, size=4096, dtype=np.int64) | 1


def slot_value(before: int, token: int, tenant: str, left: bool = False) -> int:
    """What position p holds in a layer, from what position p - 1 holds in it. ``left``: the token did not come so far."""
    return hash((before, token, crc32(tenant.encode()), left)) & MASK


def logits_index(visible: Sequence[tuple[int, np.ndarray]]) -> int:
    """From what a query sees in every group: (first visible position, values of the positions from there on)."""
    with np.errstate(over="ignore"):
        sums = [int((values * WEIGHTS[first : first + len(values)]).sum()) for first, values in visible]
    return hash(tuple(sums)) % len(LOGITS)


def leaves(test: ExitCriterion, shallow: Sequence[tuple[int, np.ndarray]]) -> bool:
    """Whether a token leaves after the first layer, by what it sees there."""
    return logits_index(shallow) / len(LOGITS) > test.threshold


def first_visible(group: KvGroup, position: int) -> int:
    return 0 if group.window is None else max(0, position - group.window + 1)


class OracleRunner:
    """The ``Runner`` that the scheduler is checked with."""

    def __init__(self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, tenant_of: Callable[[int], str]) -> None:
        self.groups, self.block_size, self.tenant_of = groups, block_size, tenant_of
        self.pools = [np.full((num_blocks * block_size, NUM_LAYERS), -1, dtype=np.int64) for _ in groups]
        self.fail_next = False

    def run(self, plan: StepPlan) -> RunnerOutput:
        if self.fail_next:
            self.fail_next = False
            raise MemoryError(INJECTED)
        size = self.block_size
        for copy in plan.copies:
            pool = self.pools[copy.group]
            pool[copy.target * size : (copy.target + 1) * size] = pool[copy.source * size : (copy.source + 1) * size]
        # All rows write before any row reads, as a layer of a real model does: a slot given to two rows must show.
        slots = [[self._slots(table, row.stop) for table in row.block_tables] for row in plan.rows]
        depths = [
            list(row.exit_plan.exit_layers if row.exit_plan and row.exit_plan.exit_layers else (None,) * len(row.token_ids))
            for row in plan.rows
        ]
        for row, tables, own in zip(plan.rows, slots, depths, strict=True):
            self._write(row, tables, own, 0)
        for row, tables, own in zip(plan.rows, slots, depths, strict=True):
            if (
                row.exit_plan
                and row.exit_plan.test
                and leaves(row.exit_plan.test, self._visible(row, tables, self._paths(row)[-1], 1))
            ):
                own[:] = [1] * len(own) if row.exit_plan.test.whole else [*own[:-1], 1]
        for row, tables, own in zip(plan.rows, slots, depths, strict=True):
            if row.exit_plan is None or row.exit_plan.fill or own[-1] is None:
                self._write(row, tables, own, 1)
        rows, found = [], {}
        for row, tables, own in zip(plan.rows, slots, depths, strict=True):
            begin = len(row.token_ids) - row.num_logits
            for path, depth in zip(self._paths(row)[begin:], own[begin:], strict=True):
                if row.exit_plan:
                    found[len(rows)] = depth or NUM_LAYERS
                rows.append(logits_index(self._visible(row, tables, path, depth or NUM_LAYERS)))
        return RunnerOutput(LOGITS[rows], exit_layers=found, num_layers=NUM_LAYERS)

    def _write(self, row: RowPlan, tables: Sequence[np.ndarray], depths: Sequence[int | None], layer: int) -> None:
        tenant = self.tenant_of(row.sequence_id)
        for pool, table in zip(self.pools, tables, strict=True):
            for token, path, depth in zip(row.token_ids, self._paths(row), depths, strict=True):
                before = path[-2] if len(path) > 1 else row.start - 1
                held = int(pool[table[before], layer]) if before >= 0 else 0
                pool[table[path[-1]], layer] = slot_value(held, token, tenant, depth is not None and depth <= layer)

    def _visible(self, row: RowPlan, tables: Sequence[np.ndarray], path: Sequence[int], depth: int) -> list[tuple[int, np.ndarray]]:
        """What a token sees in each group and layer."""
        whole = np.array([*range(row.start), *path])  # the slots that it sees but for the window
        visible = []
        for group, pool, table in zip(self.groups, self.pools, tables, strict=True):
            first = first_visible(group, len(whole) - 1)
            assert (table[whole[first:]] >= 0).all(), "a visible position has no block"
            visible += [(first, pool[table[whole[first:]], layer]) for layer in range(depth)]
        return visible

    def move(self, moves: Sequence[SlotMove]) -> None:
        size = self.block_size
        for move in moves:
            pool, (source, i), (target, j) = self.pools[move.group], move.source, move.target
            pool[target * size + j] = pool[source * size + i]

    def _paths(self, row: RowPlan) -> list[list[int]]:
        """Of each token of the row: the slots from the row's first token to it that it follows, itself included."""
        trunk = len(row.token_ids) - len(row.tree)
        paths = [list(range(row.start, row.start + i + 1)) for i in range(trunk)]
        for i, parent in enumerate(row.tree, trunk):
            paths.append([*paths[trunk + parent], row.start + i])
        return paths

    def _slots(self, table: Sequence[int | None], stop: int) -> np.ndarray:
        """The slot of every position before ``stop``; negative where the block fell out of the window."""
        blocks = np.array([-1 if block is None else block for block in table], dtype=np.int64)
        slots = blocks[:, None] * self.block_size + np.arange(self.block_size)
        slots[blocks < 0] = -1
        return slots.reshape(-1)[:stop]


class SingleThreadDrafter:
    """The same model without a pool: one request, one token after the other. It remembers what it said, by the request's id."""

    def __init__(self, groups: Sequence[KvGroup]) -> None:
        self.groups, self.sampler = groups, Sampler()
        self._beams: dict[str, list[tuple[int, ...]]] = {}
        self._drawn: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def logits(self, token_ids: Sequence[int], tenant: str) -> torch.Tensor:
        return LOGITS[logits_index(self._visible(token_ids, tenant, set(), NUM_LAYERS))][None]

    def _visible(self, token_ids: Sequence[int], tenant: str, left: set[int], depth: int) -> list[tuple[int, np.ndarray]]:
        """What the last token sees. ``left``: positions that left after the first layer."""
        held: list[np.ndarray] = []
        last = len(token_ids) - 1
        for layer in range(depth):
            if layer and not left:  # both layers hold the same
                held *= 2
                break
            values, before = [], 0
            for position, token in enumerate(token_ids):
                before = slot_value(before, token, tenant, layer > 0 and position in left)
                values.append(before)
            held.append(np.array(values, dtype=np.int64))
        seen = [first_visible(group, last) for group in self.groups]
        return [(first, values[first:]) for first in seen for values in held]

    def _depth(self, tokens: Sequence[int], request: Request, left: set[int], chosen: int | None) -> int:
        """How many layers compute the last token."""
        test = request.params.exit_criterion(len(tokens) - len(request.prompt_token_ids))
        if chosen is None and test is not None and leaves(test, self._visible(tokens, request.cache_salt, left, 1)):
            return 1
        return chosen or NUM_LAYERS

    def answers(self, request: Request) -> list[tuple[int, ...]]:
        if request.params.beam_width is None:
            return [self.depths_and_tokens(request, index)[1] for index in range(request.params.n)]
        if request.request_id not in self._beams:
            self._beams[request.request_id] = self._search(request)
        return self._beams[request.request_id]

    def depths_and_tokens(self, request: Request, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of an answer that is not a beam: how many layers gave each of its tokens, and the tokens."""
        if (request.request_id, index) not in self._drawn:
            self._drawn[request.request_id, index] = self._draw(request, index)
        return self._drawn[request.request_id, index]

    def _draw(self, request: Request, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokens, prompt, params = list(request.prompt_token_ids), len(request.prompt_token_ids), request.params
        depths: list[int] = []
        left: set[int] = set()
        chosen = request.exit_layer
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)}
        while True:
            depth = self._depth(tokens, request, left, chosen)
            if depth < NUM_LAYERS:
                left.add(len(tokens) - 1)
                chosen = depth if params.exit_rule in REQUEST_CRITERIA else chosen
            logits = LOGITS[logits_index(self._visible(tokens, request.cache_salt, left, depth))][None]
            (sampled,) = self.sampler.sample(logits, [_row(request, tokens, index)])
            assert sampled is not None
            tokens.append(sampled.token_id)
            depths.append(depth)
            if sampled.token_id in stops or len(tokens) - prompt == params.max_tokens:
                return tuple(depths), tuple(tokens[prompt:])

    def _search(self, request: Request) -> list[tuple[int, ...]]:
        search = beam_search(request)
        lines = [list(request.prompt_token_ids)]
        while True:
            logits = torch.cat([self.logits(line, request.cache_salt) for line in lines])
            scores = self.sampler.beam_logprobs(logits, [_row(request, line, i) for i, line in enumerate(lines)])
            step = search.advance(best_candidates(scores, search.beam_scores, search.num_candidates))
            if step.done:
                return [tuple(best.token_ids) for best in search.best(request.params.n)]
            lines = [[*lines[beam.parent], beam.token_id] for beam in step.beams]


def _row(request: Request, tokens: Sequence[int], index: int) -> SamplingRow:
    return SamplingRow(
        params=request.params,
        token_ids=tokens,
        num_prompt_tokens=len(request.prompt_token_ids),
        eos_token_ids=request.eos_token_ids,
        sequence_index=index,
    )
