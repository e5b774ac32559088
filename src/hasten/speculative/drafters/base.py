"""``Drafter``: proposes the next tokens of sequences, and the model verifies all of them in one step.

Leviathan et al., 2022 (arXiv 2211.17192). A draft is accepted as far as it equals the tokens that plain decoding would sample (one
sample per position, ``hasten.sampling.noise``), so a drafter changes the speed of decoding and never its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from hasten.core.draft import Draft
from hasten.core.request import Request
from hasten.speculative.draft_tree import DraftTree

MAX_INDEXED_TOKENS = 600_000  # of a drafter that looks tokens up
INDEX_BYTES = 650  # of memory for each of them, at most


class DraftRequest(NamedTuple):
    """A sequence that may get a draft."""

    sequence_id: int  # never reused
    token_ids: Sequence[int]  # prompt and output so far, without virtual tokens; it only grows
    request: Request
    output_index: int  # which output of the request (n > 1): part of the key of its noise

    @property
    def last_position(self) -> int:
        """The position of the last token in the target."""
        return len(self.request.virtual_token_ids) + len(self.token_ids) - 1

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def max_draft_tokens(self) -> int:
        """Draft tokens that the output has room for. The step that verifies them adds one token in any case."""
        max_tokens = self.request.params.max_tokens
        assert max_tokens is not None, "the engine bounds every output"
        return max(0, max_tokens - self.num_output_tokens - 1)


class ComputedSpan(NamedTuple):
    """Tokens ``[start, start + len(rows))`` of a live sequence, which the last step has computed."""

    request: DraftRequest
    start: int
    rows: Sequence[int]  # their rows among the tokens of the step


class TargetOutput(NamedTuple):
    """What the target computed in the last step. A prompt may take several steps."""

    num_tokens: int = 0  # of the step
    # The rest is for drafters with ``aux_layer_indices``.
    spans: Sequence[ComputedSpan] = ()
    is_alive: Callable[[int], bool] = lambda sequence_id: True  # whether a sequence still holds what was computed of it
    aux_hidden_states: Mapping[int, Tensor] = MappingProxyType({})  # layer index -> [T, E], valid until the next step


NO_TARGET_OUTPUT = TargetOutput()


class Drafter(Protocol):
    """Lives as long as the engine."""

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """Layers of the target, from 0, whose hidden states the drafter reads."""
        ...

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> Sequence[Draft]:
        """Return one draft per request, in ids of the target's vocabulary; it may be empty.

        Called after every step with all decoding sequences. State of other sequences may be dropped: after preemption a sequence
        counts as a new one.
        """
        ...


class ModelDrafter(Drafter, Protocol):
    """A drafter whose proposals take time, so that a policy decides when and how long to draft."""

    num_tokens: int  # of a draft, at most; may be set between rounds

    def observe(self, requests: Sequence[DraftRequest], output: TargetOutput) -> None:
        """Take in the last step. Called like ``propose``, whether or not drafts are wanted."""
        ...

    def draft(self, requests: Sequence[DraftRequest]) -> Sequence[Draft]:
        """Return one draft per request, after ``observe``; ``requests`` may be a part of those."""
        ...

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> Sequence[Draft]:
        self.observe(requests, output)
        return self.draft(requests)

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """Sensible values of ``num_tokens``, ascending."""
        ...

    def round_seconds(self, batch_size: int, num_tokens: int) -> float | None:
        """Return the expected seconds to draft so many tokens for a batch; None before the first draft."""
        ...

    def prefill_seconds(self, requests: Sequence[DraftRequest]) -> float:
        """Return the seconds to read, once, what the drafter has not read of these sequences."""
        ...


@dataclass(slots=True, eq=False)
class Expansion:
    """One sequence and its tree while a drafter expands it."""

    request: DraftRequest
    tree: DraftTree


E = TypeVar("E", bound=Expansion)
