"""``Draft``: the tree of tokens that a drafter proposes and the next step verifies. It holds integers.

Node i is one token after node ``parents[i]``, or after the sequence's last token if that is -1::

    token_ids  7  9  4  5     parents  -1  -1  0  0          last ─┬─ 7 ─┬─ 4
                                                                  └─ 9   └─ 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Limit for drafts that branch: the attention mask of a token within its row has 64 bits.
MAX_TREE_TOKENS = 63


@dataclass(frozen=True, slots=True)
class Draft:
    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()  # each is smaller than its own index; children of one parent have different tokens
    # Per node, the distribution [V] that its token was drawn from. None unless the acceptance rule needs it.
    draft_probs: tuple[Tensor, ...] | None = None
    # Per node, its estimated probability to become output, never rising. Empty where the drafter has no estimate.
    acceptance_probs: tuple[float, ...] = field(default=(), compare=False)

    @classmethod
    def chain(cls, token_ids: Sequence[int], draft_probs: tuple[Tensor, ...] | None = None) -> Draft:
        """Return a draft in which each token follows the one before it."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)), draft_probs)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """The depth of each node in tokens; children of the sequence's last token have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    def find_child(self, parent: int, token_id: int) -> int | None:
        """Return the child of ``parent`` that has this token, or None."""
        return next((i for i, p in enumerate(self.parents) if p == parent and self.token_ids[i] == token_id), None)

    def accepted_path(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the nodes of the longest prefix of ``token_ids`` that is a path of the tree."""
        path: tuple[int, ...] = ()
        for token_id in token_ids:
            child = self.find_child(path[-1] if path else -1, token_id)
            if child is None:
                break
            path = (*path, child)
        return path

    def truncate(self, num_nodes: int, max_depth: int | None = None) -> Draft:
        """Return the first ``num_nodes`` of the nodes that are at most ``max_depth`` deep."""
        if len(self) <= num_nodes and (max_depth is None or max(self.depths, default=0) <= max_depth):
            return self
        return self.select([i for i, d in enumerate(self.depths) if max_depth is None or d <= max_depth][: max(0, num_nodes)])

    def select(self, nodes: Sequence[int]) -> Draft:
        """Return these nodes, ascending; each stands after its parent."""
        new_index = {-1: -1, **{node: i for i, node in enumerate(nodes)}}
        return Draft(
            tuple(self.token_ids[i] for i in nodes),
            tuple(new_index[self.parents[i]] for i in nodes),
            self.draft_probs and tuple(self.draft_probs[i] for i in nodes),
            self.acceptance_probs and tuple(self.acceptance_probs[i] for i in nodes),
        )


NO_DRAFT = Draft()
