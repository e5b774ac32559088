"""What the scheduler knows of a request while it lives. Only the scheduler mutates these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.early_exit import ExitPlan
from hasten.core.plan import RowPlan
from hasten.core.request import Request

if TYPE_CHECKING:
    from hasten.sampling.history import TokenHistory


@dataclass(slots=True, eq=False)
class Sequence:
    """One line of tokens of a request; it needs computing as long as ``num_computed`` trails its tokens."""

    id: int
    scheduled_request: ScheduledRequest
    index: int  # which answer of the request, or which beam
    token_ids: list[int]  # the prompt, then the accepted tokens
    num_computed: int = 0
    draft: Draft = NO_DRAFT  # what may follow ``token_ids``: the next step verifies it, and it is gone after that
    exit_layer: int | None = None  # how many layers compute every token of it; None: as many as each needs
    early: dict[int, int] = field(default_factory=dict)  # of single tokens that left early: position -> layers
    num_cacheable_tokens: int | None = None  # tokens before the first that left early: others may find their blocks. None: all
    history: TokenHistory | None = None  # which tokens occur, for penalties; whoever samples keeps it. A fork starts its own

    @property
    def request(self) -> Request:
        return self.scheduled_request.request

    @property
    def num_remaining(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    def exits(self, start: int, stop: int) -> ExitPlan | None:
        """How far tokens [start, stop) go."""
        params = self.request.params
        if params.exit_rule == "none":
            return None
        if self.exit_layer is not None:
            return ExitPlan((self.exit_layer,) * (stop - start), fill=False)
        test = params.exit_criterion(self.num_output_tokens) if stop == len(self.token_ids) else None
        known = tuple(self.early.get(position) for position in range(start, stop)) if self.early else ()
        return ExitPlan(known if any(known) else (), test, fill=test is None or not test.whole)

    def record_exits(self, row: RowPlan, depth: int | None) -> None:
        """The row is computed. ``depth``: its last token had done with so many layers, by a test."""
        assert row.exit_plan is not None
        if depth is not None:
            assert row.exit_plan.test is not None
            if row.exit_plan.test.whole:
                self.exit_layer = depth
            else:
                self.early[row.stop - 1] = depth
        if self.exit_layer is not None and self.request.exit_layer is None:
            # Also where it was preempted after that: what all layers had computed is computed by fewer the second time.
            self._unsound(row.start)
        elif depth is not None:
            self._unsound(row.stop - 1)

    def _unsound(self, position: int) -> None:
        self.num_cacheable_tokens = position if self.num_cacheable_tokens is None else min(self.num_cacheable_tokens, position)


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """One request in the scheduler: its live sequences and its history."""

    request: Request
    order: int  # of arrival, breaks ties
    salt: str
    sequences: list[Sequence] = field(default_factory=list)
    hashes: dict[int, list[bytes]] = field(default_factory=dict)  # while it waits: per sequence, for the prefix match
    running: bool = False  # it waits otherwise
    num_cached_tokens: int = 0  # of the prompt, when it was first scheduled
    num_preemptions: int = 0
    first_scheduled: float | None = None

    @property
    def uses_beam_search(self) -> bool:
        """Beams advance together: a step samples all of them or none."""
        return self.request.params.beam_width is not None

    @property
    def accepts_drafts(self) -> bool:
        return not self.uses_beam_search and self.request.params.exit_rule == "none"

    @property
    def max_sequences(self) -> int:
        """Sequences it may come to have: all of them before the first token, then those that have not ended."""
        if self.uses_beam_search or self.sequences[0].num_output_tokens == 0:
            return self.request.params.beam_width or self.request.params.n
        return len(self.sequences)

    @property
    def is_decoding(self) -> bool:
        """Whether every sequence needs one token only."""
        return {len(sequence.token_ids) - sequence.num_computed for sequence in self.sequences} == {1}
