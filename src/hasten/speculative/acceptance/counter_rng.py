"""The chance of a place as a function of its key alone, as all noise here is (``hasten.sampling.noise``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.sampling.gumbel_argmax import gumbel_argmax
from hasten.sampling.noise import noise_bits, streams
from hasten.sampling.row import SamplingRow


@dataclass(slots=True)
class CounterRng:
    """``row`` is the place. Tokens are drawn with the noise of plain decoding there, and verdicts with numbers beside it."""

    row: SamplingRow
    _num_asked: int = 0

    def accepts(self, probability: float) -> bool:
        self._num_asked += 1
        key = (self.row.params.seed, self.row.sequence_index, self.row.position)
        stream = streams(*(torch.tensor([part], dtype=torch.int64) for part in key))
        # Tokens count from 0, so no token has the number of a verdict.
        bits = int(noise_bits(stream, torch.tensor([-1 - self._num_asked])))
        return (bits + 0.5) * 2.0**-52 < probability

    def draws(self, p_V: Tensor) -> int:
        (token_id,) = gumbel_argmax(p_V.log()[None], [self.row])
        assert token_id is not None, "a distribution has a token"
        return token_id
