"""``CounterRng``: a position's random numbers as a function of its key, like all sampling noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.sampling.gumbel_argmax import gumbel_argmax
from hasten.sampling.noise import noise_bits, streams
from hasten.sampling.row import SamplingRow


@dataclass(slots=True)
class CounterRng:
    """The numbers of the position ``row``: plain decoding's noise, and others to accept by."""

    row: SamplingRow
    _num_decisions: int = 0

    def bernoulli(self, probability: float) -> bool:
        self._num_decisions += 1
        key = (self.row.params.seed, self.row.sequence_index, self.row.position)
        stream = streams(*(torch.tensor([part], dtype=torch.int64, device="cpu") for part in key))
        # Token ids count from 0, so negative counters are free.
        bits = int(noise_bits(stream, torch.tensor([-1 - self._num_decisions], dtype=torch.int64, device="cpu")))
        return (bits + 0.5) * 2.0**-52 < probability

    def sample(self, p_V: Tensor) -> int:
        (token_id,) = gumbel_argmax(p_V.log()[None], [self.row])
        assert token_id is not None, "a distribution has a token"
        return token_id
