"""Guessed tokens, as a tree: what a drafter proposes, a step verifies and a rule accepts a path of. Plain integers.

Node i stands one token after node ``parents[i]``, or after the sequence's last token where that is -1::

    token_ids  7  9  4  5     parents  -1  -1  0  0          last ─┬─ 7 ─┬─ 4
                                                                  └─ 9   └─ 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The longest path through a row whose draft branches: a token's view of its row is a word of 64 bits.
MAX_TREE_TOKENS = 63


@dataclass(frozen=True, slots=True)
class Draft:
    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()  # each smaller than its own index; nodes of one parent have different tokens
    # Of each node: the distribution that its token was drawn from [V], where it was drawn apart from the position's noise and
    # a rule of acceptance has to know. None: it was not.
    draft_probs: tuple[Tensor, ...] | None = None

    @classmethod
    def chain(cls, token_ids: Sequence[int], draft_probs: tuple[Tensor, ...] | None = None) -> Draft:
        """One guess after the other."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)), draft_probs)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def branches(self) -> bool:
        """Whether it is more than one chain from the last token on."""
        return self.parents != tuple(range(-1, len(self.parents) - 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """Tokens between each node and the sequence's last token, itself included: from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    def find_child(self, parent: int, token_id: int) -> int | None:
        """The node of this token that follows ``parent``."""
        return next((i for i, p in enumerate(self.parents) if p == parent and self.token_ids[i] == token_id), None)

    def accepted_path(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The nodes of the longest beginning of ``token_ids`` that the tree holds."""
        nodes: list[int] = []
        node: int | None = -1
        for token_id in token_ids:
            assert node is not None
            node = self.find_child(node, token_id)
            if node is None:
                break
            nodes.append(node)
        return tuple(nodes)

    def truncate(self, num_nodes: int, max_depth: int | None = None) -> Draft:
        """Its first nodes, none of them deeper than ``max_depth``."""
        if max_depth is not None and len(self) and max(self.depths) > max_depth:
            return self._without_deep(max_depth).truncate(num_nodes)
        if len(self) <= num_nodes:
            return self
        count = max(0, num_nodes)
        return Draft(self.token_ids[:count], self.parents[:count], self.draft_probs and self.draft_probs[:count])

    def _without_deep(self, max_depth: int) -> Draft:
        kept = [i for i, depth in enumerate(self.depths) if depth <= max_depth]
        place = {-1: -1, **{node: i for i, node in enumerate(kept)}}
        return Draft(
            tuple(self.token_ids[i] for i in kept),
            tuple(place[self.parents[i]] for i in kept),
            self.draft_probs and tuple(self.draft_probs[i] for i in kept),
        )


NO_DRAFT = Draft()
