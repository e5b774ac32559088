"""``ScheduledRequest`` and ``Sequence``: the scheduler's state, which no other room mutates."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from hasten.core.draft import NO_DRAFT, Draft
from hasten.core.early_exit import ExitPlan
from hasten.core.plan import RowPlan
from hasten.core.request import PrefixPin, Request
from hasten.core.suffix_view import SuffixView
from hasten.sampling.history import TokenHistory


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one answer or beam of a request."""

    id: int
    scheduled_request: ScheduledRequest
    index: int  # index of the answer or beam in its request
    token_ids: list[int]  # virtual tokens, prompt, then accepted tokens
    num_computed_tokens: int = 0
    draft: Draft = NO_DRAFT  # the next step verifies it
    block_hashes: list[bytes] | None = None  # of the blocks that it may share; None while it has blocks
    exit_layer: int | None = None  # layers that compute every token; None: each token has its own exit layer
    token_exit_layers: dict[int, int] = field(default_factory=dict)  # position -> exit layer, for tokens that exited early
    num_cacheable_tokens: int | None = None  # the prefix cache may hold this many leading tokens; None: all
    history: TokenHistory | None = field(init=False)  # token counts; None without penalties. A fork starts its own
    request: Request = field(init=False)

    def __post_init__(self) -> None:
        self.request = self.scheduled_request.request
        self.history = TokenHistory(len(self.request.prompt_token_ids)) if self.request.params.has_penalties else None

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def vocabulary_token_ids(self) -> Tokens[int]:
        """The prompt, then accepted tokens: all that the sampler and the drafters know."""
        num_virtual = len(self.request.virtual_token_ids)
        return SuffixView(self.token_ids, num_virtual) if num_virtual else self.token_ids

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.request.num_initial_tokens

    def exit_plan(self, start: int, stop: int) -> ExitPlan | None:
        """Return the exit plan of tokens [start, stop); None without an exit rule."""
        params = self.request.params
        if params.exit_rule == "none":
            return None
        if self.exit_layer is not None:
            return ExitPlan((self.exit_layer,) * (stop - start), fill_kv=False)
        criterion = params.exit_criterion(self.num_output_tokens) if stop == len(self.token_ids) else None
        exit_layers = tuple(self.token_exit_layers.get(position) for position in range(start, stop))
        fill_kv = criterion is None or not criterion.per_request
        return ExitPlan(exit_layers if any(exit_layers) else (), criterion, fill_kv)

    def record_exit(self, row: RowPlan, exit_layer: int | None) -> None:
        """Record a computed row. ``exit_layer``: of its last token, if that exited by its criterion."""
        assert row.exit_plan is not None
        if exit_layer is not None:
            assert row.exit_plan.criterion is not None
            if row.exit_plan.criterion.per_request:
                self.exit_layer = exit_layer
            else:
                self.token_exit_layers[row.stop - 1] = exit_layer
        if self.exit_layer is not None and self.request.exit_layer is None:
            # After a preemption, fewer layers compute the row than before: the prefix cache must not mix both.
            self._limit_cacheable_tokens(row.start)
        elif exit_layer is not None:
            self._limit_cacheable_tokens(row.stop - 1)

    def _limit_cacheable_tokens(self, limit: int) -> None:
        self.num_cacheable_tokens = limit if self.num_cacheable_tokens is None else min(self.num_cacheable_tokens, limit)


@dataclass(slots=True, eq=False)
class ScheduledRequest:
    """A request in the scheduler, with its unfinished sequences."""

    request: Request
    rank: tuple[float, int]
    salt: str  # of its block hashes
    pins: list[PrefixPin] = field(default_factory=list)  # not yet set: their prefixes are not computed
    new_pins: list[PrefixPin] = field(default_factory=list)  # that it has set and no earlier request had
    num_pinned_tokens: int = 0  # of the longest pin that its prompt began with when it was first scheduled
    sequences: list[Sequence] = field(default_factory=list)
    is_running: bool = False  # else it waits
    num_cached_tokens: int = 0  # tokens before the output, found in the prefix cache when it was first scheduled
    num_preemptions: int = 0
    first_scheduled: float | None = None

    @property
    def uses_beam_search(self) -> bool:
        """Whether its sequences are beams; a step samples all beams of a request or none."""
        return self.request.params.beam_width is not None

    @property
    def accepts_drafts(self) -> bool:
        return not self.uses_beam_search and self.request.params.exit_rule == "none"

    @property
    def max_sequences(self) -> int:
        """The most sequences it can have from now on."""
        if self.uses_beam_search or self.sequences[0].num_output_tokens == 0:
            return self.request.params.beam_width or self.request.params.n
        return len(self.sequences)

    @property
    def is_decoding(self) -> bool:
        """Whether every sequence has exactly one token to compute."""
        return {len(sequence.token_ids) - sequence.num_computed_tokens for sequence in self.sequences} == {1}
