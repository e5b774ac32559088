"""What a drafter is: it guesses the next tokens of a sequence, and the model verifies all of them in one step.

Leviathan et al., 2022 (arXiv 2211.17192). A guess is accepted as far as it equals the tokens that plain decoding would have drawn
(each position has one sample, ``hasten.sampling.noise``), so a drafter can make output faster or slower but never other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hasten.core.draft import Draft
from hasten.core.request import Request

if TYPE_CHECKING:
    from torch import Tensor


class DraftRequest(NamedTuple):
    """A sequence that wants a draft."""

    sequence_id: int  # never used again for another one
    token_ids: Sequence[int]  # the prompt, then the answer so far; it only ever grows
    request: Request
    answer_index: int  # which answer of the request: part of the key of its noise

    @property
    def num_answered(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def room(self) -> int:
        """Tokens that may be guessed: the step that verifies them gives one in any case."""
        most = self.request.params.max_tokens
        assert most is not None, "the engine bounds every answer"
        return max(0, most - self.num_answered - 1)


class ComputedSpan(NamedTuple):
    """A line of which the last step has computed tokens ``[start, start + len(tokens))``, where it still lives."""

    line: DraftRequest
    start: int
    tokens: Sequence[int]  # their places in the step


class TargetOutput(NamedTuple):
    """What the model saw in the last step. A prompt may take several steps before it is among the lines that decode."""

    num_tokens: int = 0  # of the step
    # For drafters with taps alone:
    computed: Sequence[ComputedSpan] = ()
    # Whether a line, by its sequence, still has what was computed of it: also one that the last step had no room for.
    alive: Callable[[int], bool] = lambda sequence_id: True
    aux_hidden_states: Mapping[int, Tensor] = MappingProxyType(
        {}
    )  # layer -> its hidden state of each token of the step [T, E], until the next


NO_TARGET_OUTPUT = TargetOutput()


class Drafter(Protocol):
    """Lives as long as the engine."""

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The layers of the model whose hidden states it reads."""
        ...

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> Sequence[Draft]:
        """A guess for each line, perhaps an empty one; ids of the target's vocabulary.

        Called after every step with all lines that decode. What the drafter remembers of others it may forget: a sequence that
        comes back after preemption is a new one to it.
        """
        ...


class ModelDrafter(Drafter, Protocol):
    """One whose guesses take time to make, so that somebody has to say when, how many and of which lines."""

    num_tokens: int  # of a guess, at most; may be set between rounds

    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        """Called as ``propose`` is, whether or not any guess is wanted then."""
        ...

    def guess(self, lines: Sequence[DraftRequest]) -> Sequence[Draft]:
        """After ``watch``: a guess for each of these lines, which may be a part of those."""
        ...

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> Sequence[Draft]:
        self.watch(lines, seen)
        return self.guess(lines)

    @property
    def lengths(self) -> tuple[int, ...]:
        """What ``num_tokens`` may be, short ones first."""
        ...

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        """Seconds to guess so many tokens for as many lines; where it has done so for fewer lines only, at least that. None: it
        has not guessed yet.
        """
        ...

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        """Seconds that it needs beside that, once, to read what it has not read of these lines."""
        ...

    def shape(self, num_tokens: int) -> Draft:
        """What its guesses look like; the token ids mean nothing."""
        ...
