"""How likely guesses are to become output, from how the last ones of their kind fared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft

FORGOTTEN = 0.97  # what a verdict still counts for when the next one is there: about the last thirty matter
FIRST_CHILD, OTHER_CHILD = 0.5, 0.1  # what is believed of guesses that were never tried
WEIGHT = 2.0  # how many tries that, or the mean of other guesses in the same place among their siblings, is worth


@dataclass(slots=True)
class Outlook:
    """Of one kind of drafts: node by node, how often it was right where its parent was."""

    _tries: list[float] = field(default_factory=list)
    _hits: list[float] = field(default_factory=list)

    def chances(self, draft: Draft) -> list[float]:
        """Of each node: that it will become output. Never more than of the node before: a beginning is the best part."""
        chances: list[float] = []
        first_child = self._mean(FIRST_CHILD, [i for i, parent in enumerate(draft.parents) if parent == i - 1])
        for node, parent in enumerate(draft.parents):
            prior = first_child if parent == node - 1 else OTHER_CHILD
            tries = self._tries[node] if node < len(self._tries) else 0.0
            hits = self._hits[node] if node < len(self._hits) else 0.0
            chance = (hits + WEIGHT * prior) / (tries + WEIGHT) * (chances[parent] if parent >= 0 else 1.0)
            chances.append(min(chance, chances[-1]) if chances else chance)
        return chances

    def _mean(self, prior: float, nodes: Sequence[int]) -> float:
        known = [i for i in nodes if i < len(self._tries)]
        hits, tries = (sum(counts[i] for i in known) for counts in (self._hits, self._tries))
        return (hits + WEIGHT * prior) / (tries + WEIGHT)

    def note(self, verdicts: Mapping[int, bool | None]) -> None:
        """Of nodes that the text has not told of, what is known grows old."""
        missing = max(verdicts, default=-1) + 1 - len(self._tries)
        self._tries += [0.0] * missing
        self._hits += [0.0] * missing
        for node, right in verdicts.items():
            self._tries[node] = self._tries[node] * FORGOTTEN + (right is not None)
            self._hits[node] = self._hits[node] * FORGOTTEN + (right is True)


def verdicts(draft: Draft, token_ids: Sequence[int]) -> dict[int, bool | None]:
    """Node -> whether it was right, where the text went on with these tokens so far; None: they do not reach it.

    Nodes that follow a wrong one are left out: nothing can be said of them.
    """
    found: dict[int, bool | None] = {-1: True}
    for node, (parent, depth) in enumerate(zip(draft.parents, draft.depths, strict=True)):
        if depth > len(token_ids) and found.get(parent, False) is not False:
            found[node] = None
        elif found.get(parent):
            found[node] = draft.token_ids[node] == token_ids[depth - 1]
    del found[-1]
    return found
