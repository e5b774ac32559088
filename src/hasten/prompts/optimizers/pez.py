"""PEZ: a hard prompt by projected gradient (Wen et al., 2023, arXiv 2302.03668).

Continuous embeddings are projected to the nearest tokens by cosine similarity, as in the paper's code. The gradient at the tokens'
embeddings moves the continuous ones, by AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101).

Shape suffixes: L tokens of the hard prompt · K nearest tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

WEIGHT_DECAY = 0.1  # as in the paper
BETAS = (0.9, 0.999)
EPSILON = 1e-8
NEIGHBOURS = 64  # nearest tokens of a position that are tried until the prompt reads back


@dataclass(frozen=True, slots=True, kw_only=True)
class PezOptions:
    """Raises ``InvalidOption`` that names every value out of range."""

    length: Annotated[int, Range(1, 512)] = 8  # tokens of the hard prompt
    steps: Annotated[int, Range(1, 10**6)] = 500
    learning_rate: Annotated[float, Range(0, 10, above=True)] = 0.1
    batch: Annotated[int, Range(1, 2**16)] = 8  # train items per step

    def __post_init__(self) -> None:
        check_fields(self, "pez option", InvalidOption)


OPTIONS = PezOptions


def optimize(bench: Workbench, initial: TemplateVariant, options: PezOptions) -> Candidate:
    """Return the best prompt by the validation items; ``initial`` if none is better.

    The state is saved every few seconds, and the same call goes on from it. Raises ``HastenError``.
    """
    search = HardPromptSearch("pez", bench, initial, options)
    return search.run(ProjectedGradient(search, options))


def nearest_tokens(prompt_LE: Tensor, table_VE: Tensor, is_printable_V: Tensor, num: int) -> Tensor:
    """Return the printable tokens of the highest cosine similarity to each position, nearest first. [L, K]"""
    norms_V: Tensor = torch.linalg.vector_norm(table_VE, dim=1).clamp_min(torch.finfo(table_VE.dtype).tiny)
    similarity_LV = (prompt_LE @ table_VE.T / norms_V).masked_fill(~is_printable_V, -torch.inf)
    return similarity_LV.topk(min(num, int(is_printable_V.sum()))).indices


class ProjectedGradient:
    def __init__(self, search: HardPromptSearch, options: PezOptions) -> None:
        self._search, self._options = search, options

    def start(self, ids: Sequence[int]) -> Mapping[str, Tensor]:
        prompt_LE = self._search.table_VE[list(ids)]
        return {"prompt_LE": prompt_LE, "exp_avg_LE": torch.zeros_like(prompt_LE), "exp_avg_sq_LE": torch.zeros_like(prompt_LE)}

    def advance(self, step: int, tensors: Mapping[str, Tensor]) -> Proposal:
        """Return the projected tokens, and the continuous embeddings after a step from there."""
        search = self._search
        ids, reads_back = self._project(tensors["prompt_LE"])
        _, gradient_LE = search.loss.gradient(search.table_VE[ids], search.batch(step))
        return Proposal(adamw_step(tensors, gradient_LE, step, self._options.learning_rate), tuple(ids) if reads_back else None)

    def _project(self, prompt_LE: Tensor) -> tuple[list[int], bool]:
        """Return the tokens of a projection, and whether they read back.

        From left to right, each is the nearest one with which the tokens so far read back.
        """
        layout = self._search.layout
        ids: list[int] = []
        nearest_LK = nearest_tokens(prompt_LE, self._search.table_VE, self._search.is_printable_V, NEIGHBOURS)
        for nearest in nearest_LK.tolist():
            reads_back = layout.reads_back if len(ids) == len(prompt_LE) - 1 else layout.is_stable
            ids.append(next((token for token in nearest if reads_back([*ids, token])), nearest[0]))
        return ids, layout.reads_back(ids)


def adamw_step(tensors: Mapping[str, Tensor], gradient_LE: Tensor, step: int, learning_rate: float) -> dict[str, Tensor]:
    """Return new embeddings and moments. ``step`` counts from 0."""
    first, second = BETAS
    exp_avg_LE = tensors["exp_avg_LE"] * first + gradient_LE * (1 - first)
    exp_avg_sq_LE = tensors["exp_avg_sq_LE"] * second + gradient_LE**2 * (1 - second)
    scale_LE = (exp_avg_sq_LE / (1 - second ** (step + 1))).sqrt() + EPSILON
    update_LE = exp_avg_LE / (1 - first ** (step + 1)) / scale_LE
    prompt_LE = tensors["prompt_LE"] * (1 - learning_rate * WEIGHT_DECAY) - learning_rate * update_LE
    return {"prompt_LE": prompt_LE, "exp_avg_LE": exp_avg_LE, "exp_avg_sq_LE": exp_avg_sq_LE}
