"""What the sampler may know of one row of logits: a view, made anew for every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.history import TokenHistory


class SamplingRow(NamedTuple):
    """The sequence whose next token is wanted. A named tuple is made in a third of the time of a frozen dataclass.

    Nothing that matters is remembered from one step to the next, so preemption, forks and aborts cannot leave the sampler wrong:
    a ``history`` belongs to one sequence and says no more than its tokens do.
    """

    params: SamplingParams
    token_ids: Sequence[int]  # the prompt, then the answer so far
    num_prompt_tokens: int
    eos_token_ids: tuple[int, ...]
    sequence_index: int  # which answer of its request; part of the key of its noise
    history: TokenHistory | None = None  # of ``token_ids``, where somebody keeps it

    @property
    def position(self) -> int:
        """The position of the token to be chosen."""
        return len(self.token_ids)

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def occurrences(self) -> TokenHistory:
        """Which tokens occur, up to date."""
        return (self.history or TokenHistory(self.num_prompt_tokens)).follow(self.token_ids)

    @property
    def answer_token_ids(self) -> Sequence[int]:
        return self.token_ids[self.num_prompt_tokens :]
