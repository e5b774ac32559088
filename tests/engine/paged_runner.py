"""``PagedRunner``: runs rows that a test plans by hand, over KV blocks in random order."""

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
    """A tree of tokens.

    A node follows the node ``parents[node]``; -1 stands for the last token before the tree.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root to ``node``."""
        return [] if node < 0 else [*self.path(self.parents[node]), node]

    @property
    def leaves(self) -> list[int]:
        return [node for node in range(len(self.parents)) if node not in self.parents]


def random_tree(draw: random.Random, tokens: Sequence[int]) -> Tree:
    return Tree(tuple(tokens), tuple(draw.randrange(-1, node) for node in range(len(tokens))))


class PagedRunner:
    """A runner with the block tables of its sequences.

    Blocks outside a window are released and used again.
    """

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
                block = table[i]
                if block is not None:
                    free.append(block)
                table[i] = None
            while len(table) * self.block_size < start + len(token_ids):
                table.append(free.pop())
        return RowPlan(sequence, start, tuple(token_ids), tuple(map(tuple, tables)), num_logits, tuple(tree))

    def run(self, *rows: RowPlan) -> Tensor:
        return self.runner.run(StepPlan(rows)).logits.clone()

    def prompt_logits(self, *sequences: Sequence[int]) -> list[Tensor]:
        """Return all logits [T, V] of each sequence, computed in one step on blocks of its own."""
        ids = [-1 - i for i in range(len(sequences))]
        logits_RV = self.run(*[self.row(i, 0, tokens, len(tokens)) for i, tokens in zip(ids, sequences, strict=True)])
        for i in ids:
            self._free_blocks(i)
        return list(logits_RV.split([len(tokens) for tokens in sequences]))

    def clear(self) -> None:
        """Release the blocks of all sequences."""
        for sequence in tuple(self._tables):
            self._free_blocks(sequence)

    def _free_blocks(self, sequence: int) -> None:
        for table, free in zip(self._tables.pop(sequence), self._free, strict=True):
            free += [block for block in table if block is not None]

    def slot_moves(self, sequence: int, begin: int, path: Sequence[int]) -> list[SlotMove]:
        """Return the slot_moves of slot ``begin + path[i]`` to slot ``begin + i``."""

        def location(table: list[int | None], slot: int) -> tuple[int, int]:
            block = table[slot // self.block_size]
            assert block is not None
            return block, slot % self.block_size

        return [
            SlotMove(group, location(table, begin + node), location(table, begin + i))
            for group, table in enumerate(self._tables[sequence])
            for i, node in enumerate(path)
            if i != node
        ]
