"""Tokens chosen by one native call for all rows; the few that it leaves undecided are chosen the portable way.

It knows no more of sampling than which settings the kernel has: the definition is that of ``gumbel_argmax`` and of the warpers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.sample_tokens import sample_tokens, sampling_settings
from hasten.sampling.chain import MOST_KNOWN, WARPERS, Chain
from hasten.sampling.row import SamplingRow
from hasten.sampling.select_rows import select_rows
from hasten.sampling.token_selector import TorchTokenSelector


@dataclass(frozen=True, slots=True)
class NativeTokenSelector:
    """For float32 logits in memory, each row contiguous. The kernel has the warpers of the default chain, without typical-p."""

    cpu: Cpu
    portable: TorchTokenSelector = field(default_factory=TorchTokenSelector)
    # By identity, as in ``Chain``: settings never change. None where the kernel does not have them.
    _known: dict[int, tuple[SamplingParams, bytes | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.chain.warpers == WARPERS, "the kernel knows the default warpers"

    @property
    def chain(self) -> Chain:
        return self.portable.chain

    def choose(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        # What is known holds its settings, so no others can have got their id.
        found = [self._known.get(id(row.params)) for row in rows]
        settings = [self._packed(row.params) if known is None else known[1] for known, row in zip(found, rows, strict=True)]
        taken = [given for given in settings if given is not None]
        if len(taken) == len(rows):
            tokens, undecided = self._draw(logits_RV, rows, taken)
        else:
            tokens, undecided = [None] * len(rows), [i for i, given in enumerate(settings) if given is None]
            if taken:
                index = [i for i, given in enumerate(settings) if given is not None]
                drawn, left = self._draw(select_rows(logits_RV, index), [rows[i] for i in index], taken)
                for i, token in zip(index, drawn, strict=True):
                    tokens[i] = token
                undecided = sorted(undecided + [index[i] for i in left])
        if undecided:
            chosen = self.portable.choose(select_rows(logits_RV, undecided), [rows[i] for i in undecided])
            for i, token in zip(undecided, chosen, strict=True):
                tokens[i] = token
        return tokens

    def _draw(self, logits_RV: Tensor, rows: Sequence[SamplingRow], settings: list[bytes]) -> tuple[list[int | None], list[int]]:
        """Tokens, and the rows that have none."""
        keys = array("q", [part for row in rows for part in (row.sequence_index, len(row.token_ids))])
        return sample_tokens(self.cpu, logits_RV, b"".join(settings), keys)

    def _packed(self, params: SamplingParams) -> bytes | None:
        packed = None
        if params.greedy:
            packed = sampling_settings(0, 0.0, 1.0, 0.0, None)
        elif params.typical_p == 1:
            assert params.seed is not None, "the engine gives every sampling request a seed"
            packed = sampling_settings(params.seed, params.temperature, params.top_p, params.min_p, params.top_k)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[id(params)] = (params, packed)
        return packed
