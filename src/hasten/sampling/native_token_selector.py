"""Token selection by one native call for all rows; undecided rows go to the PyTorch reference.

The kernel has the definitions of ``gumbel_argmax`` and of the warpers. This file only knows which settings the kernel has.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.sample_tokens import UNDECIDED, pack_settings, sample_tokens
from hasten.sampling.chain import WARPERS, Chain
from hasten.sampling.params_cache import ParamsCache
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import select_rows
from hasten.sampling.token_selector import TorchTokenSelector


@dataclass(frozen=True, slots=True)
class NativeTokenSelector:
    """Selector for float32 logits on the CPU with contiguous rows; the kernel has no typical-p."""

    cpu: Cpu
    fallback: TorchTokenSelector = field(default_factory=TorchTokenSelector)
    _packed: ParamsCache[bytes] = field(default_factory=ParamsCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.chain.warpers == WARPERS, "the kernel knows the default warpers"

    @property
    def chain(self) -> Chain:
        return self.fallback.chain

    def select(self, logits_RV: Tensor, rows: Sequence[SamplingRow], *, skipped: Collection[int] = frozenset()) -> list[int | None]:
        settings = b"".join([UNDECIDED if i in skipped else self._packed.get(row.params, _pack) for i, row in enumerate(rows)])
        keys = array("q", [part for row in rows for part in (row.sequence_index, len(row.token_ids))])
        token_ids = sample_tokens(self.cpu, logits_RV, settings, keys)
        undecided = [i for i, token_id in enumerate(token_ids) if token_id is None and i not in skipped]
        if undecided:
            selected = self.fallback.select(select_rows(logits_RV, undecided), [rows[i] for i in undecided])
            for i, token_id in zip(undecided, selected, strict=True):
                token_ids[i] = token_id
        return token_ids


def _pack(params: SamplingParams) -> bytes:
    if params.greedy:
        return pack_settings(0, 0.0, 1.0, 0.0, None)
    assert params.seed is not None, "the engine gives every sampling request a seed"
    if params.typical_p < 1:
        return UNDECIDED
    return pack_settings(params.seed, params.temperature, params.top_p, params.min_p, params.top_k)
