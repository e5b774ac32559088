"""``StepOutcome``: what one step accepts, collected while its rows are sampled, verified and searched.

It owns the failure of a request: a failed request loses what it has accepted in this step, and no other request is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hasten.core.errors import HastenError, clip, printable
from hasten.core.result import Continuation, DraftOutcome, Finish, FinishReason, StepResult
from hasten.engine.completion import Completion
from hasten.engine.request_state import RequestState
from hasten.scheduling.sequence import Sequence

log = logging.getLogger(__name__)

NOT_FINITE = "the model's logits for this request are not finite numbers (NaN or infinity)"


@dataclass(slots=True)
class StepOutcome:
    now: float
    exit_layers: Mapping[int, int] = field(default_factory=dict)  # see ``StepResult``
    continuations: list[Continuation] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    corrupted: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    draft_outcomes: list[DraftOutcome] = field(default_factory=list)
    updated: dict[str, list[Completion]] = field(default_factory=dict)  # request id -> completions with something new

    def accept(self, sequence: Sequence, completion: Completion, token_id: int, finish: Finish | None, *, drafted: bool) -> None:
        """Add a token to a sequence. ``drafted``: it follows the last added token along the draft."""
        before: tuple[int, ...] = ()
        if drafted:
            before = self.continuations.pop().token_ids
        else:
            self.updated.setdefault(sequence.request.request_id, []).append(completion)
        self.continuations.append(Continuation(sequence.id, (*before, token_id), finish, completion.index))

    def fail(self, state: RequestState, sequences: Iterable[Sequence], error: str, *, corrupted: bool = False) -> None:
        """End a request with an error. ``corrupted``: its blocks may hold NaN and must not be reused."""
        if state.error is not None:
            return
        state.end(FinishReason.ERROR, self.now, error)
        ended = self.corrupted if corrupted else self.failed
        ended += [sequence.id for sequence in sequences]
        gone = {*self.corrupted, *self.failed}
        self.continuations = [continuation for continuation in self.continuations if continuation.parent not in gone]
        self.dropped = [sequence_id for sequence_id in self.dropped if sequence_id not in gone]
        self.updated[state.request.request_id] = list(state.completions)

    def fail_by_exception(self, state: RequestState, sequences: Iterable[Sequence], error: Exception) -> None:
        """End a request that made the engine raise."""
        log.error("request %s failed", state.request.request_id, exc_info=error)
        self.fail(state, list(sequences), describe_exception(error))

    def result(self) -> StepResult:
        return StepResult(
            continuations=tuple(self.continuations),
            dropped=tuple(self.dropped),
            corrupted=tuple(self.corrupted),
            failed=tuple(self.failed),
            draft_outcomes=tuple(self.draft_outcomes),
            exit_layers=self.exit_layers,
        )


def describe_exception(error: Exception) -> str:
    """Return the error message of a request that made the engine raise."""
    try:
        if isinstance(error, HastenError):
            return clip(printable(error), 500)
        message = f": {clip(printable(error), 500)}"
    except Exception:  # ``str`` of an exception may raise
        message = ""
    return f"hasten could not process this request ({type(error).__name__}{message})"
