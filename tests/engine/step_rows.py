"""Rows of steps over blocks in random order, run one by one: what a scheduler would plan, written by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.plan import RowPlan, SlotMove, StepPlan
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.models.load import LoadedModel
from hasten.runners.backends.base import Backend
from hasten.runners.base import KvCacheConfig

NUM_SLOTS = 8192


@dataclass(frozen=True, slots=True)
class Tree:
    """Tokens that branch: each follows the token ``parents`` names, -1 the tokens before the tree."""

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]

    def path(self, node: int) -> list[int]:
        """The nodes from the first to this one."""
        return [] if node < 0 else [*self.path(self.parents[node]), node]

    @property
    def leaves(self) -> list[int]:
        return [node for node in range(len(self.parents)) if node not in self.parents]


def random_tree(draw: random.Random, tokens: Sequence[int]) -> Tree:
    return Tree(tuple(tokens), tuple(draw.randrange(-1, node) for node in range(len(tokens))))


class Steps:
    """A runner and the blocks of its sequences. Blocks that fall out of a window are given to others."""

    def __init__(self, backend: Backend, model: LoadedModel, block_size: int, aux_layer_indices: tuple[int, ...] = ()) -> None:
        self.groups, self.block_size = kv_groups(model.spec), block_size
        num_blocks = NUM_SLOTS // block_size
        kv = KvCacheConfig(self.groups, num_blocks, block_size, model.dtype)
        self.runner = backend.make_runner(model.decoder, kv, NUM_SLOTS, aux_layer_indices)
        draw = random.Random(block_size)
        self._free = [draw.sample(range(num_blocks), num_blocks) for _ in self.groups]
        self._tables: dict[int, list[list[int | None]]] = {}

    def row(self, sequence: int, start: int, token_ids: Sequence[int], num_logits: int, tree: Sequence[int] = ()) -> RowPlan:
        tables = self._tables.setdefault(sequence, [[] for _ in self.groups])
        for group, table, free in zip(self.groups, tables, self._free, strict=True):
            for i in range(group.first_live_block(start, self.block_size)):
                gone = table[i]
                if gone is not None:
                    free.append(gone)
                table[i] = None
            while len(table) * self.block_size < start + len(token_ids):
                table.append(free.pop())
        return RowPlan(sequence, start, tuple(token_ids), tuple(map(tuple, tables)), num_logits, tuple(tree))

    def run(self, *rows: RowPlan) -> Tensor:
        return self.runner.run(StepPlan(rows)).logits.clone()

    def plain(self, *sequences: Sequence[int]) -> list[Tensor]:
        """All logits of each sequence, computed from its first token in one piece on blocks that nobody else has."""
        ids = [-1 - i for i in range(len(sequences))]
        logits_RV = self.run(*[self.row(i, 0, tokens, len(tokens)) for i, tokens in zip(ids, sequences, strict=True)])
        for i in ids:
            self._close(i)
        return list(logits_RV.split([len(tokens) for tokens in sequences]))

    def clear(self) -> None:
        """Forget all sequences."""
        for sequence in tuple(self._tables):
            self._close(sequence)

    def _close(self, sequence: int) -> None:
        for table, free in zip(self._tables.pop(sequence), self._free, strict=True):
            free += [block for block in table if block is not None]

    def moves(self, sequence: int, begin: int, path: Sequence[int]) -> list[SlotMove]:
        """Slots ``begin + path[i]`` to ``begin + i``."""

        def place(table: list[int | None], slot: int) -> tuple[int, int]:
            block = table[slot // self.block_size]
            assert block is not None
            return block, slot % self.block_size

        return [
            SlotMove(group, place(table, begin + node), place(table, begin + i))
            for group, table in enumerate(self._tables[sequence])
            for i, node in enumerate(path)
            if i != node
        ]
