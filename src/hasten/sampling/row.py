"""What the sampler knows of one row of logits, made anew for every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.guides.base import TokenGuide
from hasten.sampling.history import TokenHistory


class SamplingRow(NamedTuple):
    """The settings and tokens of the sequence that one row of logits continues.

    The sampler keeps no state between steps, so preemption, forks and aborts cannot make it wrong. ``history`` only caches
    what ``token_ids`` says. A named tuple takes a third of the time of a frozen dataclass to make.
    """

    params: SamplingParams
    token_ids: Sequence[int]  # the prompt, then the output so far
    num_prompt_tokens: int
    eos_token_ids: tuple[int, ...]
    sequence_index: int  # index of the completion in its request; part of the noise key
    history: TokenHistory | None = None  # of ``token_ids``, if the engine keeps one
    guide: TokenGuide | None = None  # of the request, if it has one

    @property
    def position(self) -> int:
        """Return the position of the token to be sampled."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> Sequence[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def updated_history(self) -> TokenHistory:
        """Return the counts of all tokens: ``history`` after an update, or a new count without one."""
        return (self.history or TokenHistory(self.num_prompt_tokens)).update(self.token_ids)
