"""A model whose every token tells whether the KV blocks were right.

Instead of keys and values, a slot of the pool holds a number that depends on all tokens up to its position and on the tenant.
A row of logits depends on every slot that the query can see, read back through the block table. So a stale block, a skipped
copy, a dropped salt or a position that is off by one shows as a wrong token. ``Alone`` computes what the same request gives
with no pool, no batch and no scheduler at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import torch

from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.decoding.search.candidates import best_candidates
from hasten.engine.record import beam_search
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler

VOCABULARY = 24
MASK = (1 << 63) - 1
INJECTED = "injected by the test"
_generator = np.random.default_rng(7)
LOGITS = torch.tensor(_generator.normal(0, 2.0, size=(4099, VOCABULARY)), dtype=torch.float32)
WEIGHTS = _generator.integers(1, 1 << 62, size=4096, dtype=np.int64) | 1


def slot_value(before: int, token: int, tenant: str) -> int:
    """What position p holds, from what position p - 1 holds."""
    return hash((before, token, crc32(tenant.encode()))) & MASK


def logits_index(visible: Sequence[tuple[int, np.ndarray]]) -> int:
    """From what a query sees in every group: (first visible position, values of the positions from there on)."""
    with np.errstate(over="ignore"):
        sums = [int((values * WEIGHTS[first : first + len(values)]).sum()) for first, values in visible]
    return hash(tuple(sums)) % len(LOGITS)


def first_visible(group: KvGroup, position: int) -> int:
    return 0 if group.window is None else max(0, position - group.window + 1)


class OracleRunner:
    """The ``Runner`` that the scheduler is checked with."""

    def __init__(self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, tenant_of: Callable[[int], str]) -> None:
        self.groups, self.block_size, self.tenant_of = groups, block_size, tenant_of
        self.pools = [np.full(num_blocks * block_size, -1, dtype=np.int64) for _ in groups]
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
        for row, tables in zip(plan.rows, slots, strict=True):
            tenant = self.tenant_of(row.sequence_id)
            for pool, table in zip(self.pools, tables, strict=True):
                for token, path in zip(row.token_ids, self._paths(row), strict=True):
                    before = path[-2] if len(path) > 1 else row.start - 1
                    pool[table[path[-1]]] = slot_value(int(pool[table[before]]) if before >= 0 else 0, token, tenant)
        rows = []
        for row, tables in zip(plan.rows, slots, strict=True):
            for path in self._paths(row)[len(row.token_ids) - row.num_logits :]:
                whole = np.array([*range(row.start), *path])  # the slots that a token sees but for the window
                visible = []
                for group, pool, table in zip(self.groups, self.pools, tables, strict=True):
                    first = first_visible(group, len(whole) - 1)
                    assert (table[whole[first:]] >= 0).all(), "a visible position has no block"
                    visible.append((first, pool[table[whole[first:]]]))
                rows.append(logits_index(visible))
        return RunnerOutput(LOGITS[rows])

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


class Alone:
    """The same model without a pool: one request, one token after the other."""

    def __init__(self, groups: Sequence[KvGroup]) -> None:
        self.groups, self.sampler = groups, Sampler()

    def logits(self, token_ids: Sequence[int], tenant: str) -> torch.Tensor:
        values, before = [], 0
        for token in token_ids:
            before = slot_value(before, token, tenant)
            values.append(before)
        held, last = np.array(values, dtype=np.int64), len(values) - 1
        seen = [first_visible(group, last) for group in self.groups]
        return LOGITS[logits_index([(first, held[first:]) for first in seen])][None]

    def answers(self, request: Request) -> list[tuple[int, ...]]:
        if request.params.beam_width is not None:
            return self._search(request)
        return [self._sample(request, index) for index in range(request.params.n)]

    def _sample(self, request: Request, index: int) -> tuple[int, ...]:
        tokens, prompt, params = list(request.prompt_token_ids), len(request.prompt_token_ids), request.params
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)}
        while True:
            (sampled,) = self.sampler.sample(self.logits(tokens, request.cache_salt), [_row(request, tokens, index)])
            assert sampled is not None
            tokens.append(sampled.token_id)
            if sampled.token_id in stops or len(tokens) - prompt == params.max_tokens:
                return tuple(tokens[prompt:])

    def _search(self, request: Request) -> list[tuple[int, ...]]:
        search = beam_search(request)
        lines = [list(request.prompt_token_ids)]
        while True:
            logits = torch.cat([self.logits(line, request.cache_salt) for line in lines])
            scores = self.sampler.beam_logprobs(logits, [_row(request, line, i) for i, line in enumerate(lines)])
            step = search.advance(best_candidates(scores, search.scores, search.candidates_wanted))
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
