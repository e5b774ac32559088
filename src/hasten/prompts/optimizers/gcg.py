"""GCG: a hard prompt by greedy coordinate gradient (Zou et al., 2023, arXiv 2307.15043).

The gradient of the loss by the one-hot vectors of the tokens says, to first order, what each swap of one token would change. A step
draws swaps at random among the best ones of every position, computes their losses, and goes on from the best of them.

Shape suffixes: L tokens of the hard prompt · K best tokens of a position · C swaps · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Range
from hasten.prompts.hard_prompt.search import HardPromptSearch, Proposal
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.optimizer import Candidate, Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class GcgOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    length: Annotated[int, Range(1, 512)] = 8  # tokens of the hard prompt
    steps: Annotated[int, Range(1, 10**6)] = 100
    top_k: Annotated[int, Range(1, 2**20)] = 64  # tokens per position that swaps are drawn from
    num_candidates: Annotated[int, Range(1, 2**16)] = 64  # swaps whose loss is computed, per step
    batch: Annotated[int, Range(1, 2**16)] = 8  # train items per step

    def __post_init__(self) -> None:
        check_fields(self, "gcg option", InvalidOption)


OPTIONS = GcgOptions


def optimize(bench: Workbench, initial: TemplateVariant, options: GcgOptions) -> Candidate:
    """Return the best prompt by the validation items; ``initial`` if none is better.

    The state is saved every few seconds, and the same call goes on from it. Raises ``HastenError``.
    """
    search = HardPromptSearch("gcg", bench, initial, options)
    return search.run(CoordinateGradient(search, options))


def best_swaps(gradient_LE: Tensor, table_VE: Tensor, is_printable_V: Tensor, top_k: int) -> Tensor:
    """Return the printable tokens with the most negative one-hot gradient, best first. [L, K]"""
    gradient_LV = (gradient_LE @ table_VE.T).masked_fill(~is_printable_V, torch.inf)
    return gradient_LV.topk(min(top_k, int(is_printable_V.sum())), largest=False).indices


class CoordinateGradient:
    def __init__(self, search: HardPromptSearch, options: GcgOptions) -> None:
        self._search, self._options = search, options

    def start(self, ids: Sequence[int]) -> Mapping[str, Tensor]:
        return {"ids_L": torch.tensor(ids, dtype=torch.int64, device="cpu")}

    def advance(self, step: int, tensors: Mapping[str, Tensor]) -> Proposal:
        """Return the swap of the lowest loss on the step's items, also if it is higher than before."""
        search, ids_L = self._search, tensors["ids_L"]
        items = search.batch(step)
        _, gradient_LE = search.loss.gradient(search.table_VE[ids_L], items)
        swaps_LK = best_swaps(gradient_LE, search.table_VE, search.is_printable_V, self._options.top_k)
        swapped = list(self._swapped(ids_L.tolist(), swaps_LK, search.generator(step)))
        if not swapped:  # no swap reads back; other items may give other swaps
            return Proposal(tensors, None)
        prompts_CL = torch.tensor(swapped, dtype=torch.int64, device="cpu")
        losses_C = search.loss.losses(search.table_VE[prompts_CL], items).mean(1)
        best = int(losses_C.argmin())
        return Proposal({"ids_L": prompts_CL[best].clone()}, tuple(swapped[best]))

    def _swapped(self, ids: list[int], swaps_LK: Tensor, generator: torch.Generator) -> Iterator[list[int]]:
        """Yield hard prompts with one token swapped, drawn without replacement, of those that read back."""
        num_left = self._options.num_candidates
        for place in torch.randperm(swaps_LK.numel(), generator=generator).tolist():
            position, rank = divmod(place, swaps_LK.shape[1])
            swapped = [*ids[:position], int(swaps_LK[position, rank]), *ids[position + 1 :]]
            if swapped != ids and self._search.layout.reads_back(swapped):
                yield swapped
                num_left -= 1
                if not num_left:
                    return
