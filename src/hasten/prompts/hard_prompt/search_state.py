"""``SearchState``: how far a search for a hard prompt is, and the folder that keeps it.

::

    FOLDER/.resume/settings.json               the digest of all that the search depends on
                   step-00000120.safetensors   the tensors of the method
                   state.json                  the rest; written last, atomically
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.json_values import are_integers, is_integer
from hasten.training.resume import ResumeFolder, SavedState, damaged_state

MAX_FINALISTS = 4


@dataclass(frozen=True, slots=True)
class Finalist:
    """A hard prompt with its mean loss on the train items that all finalists are compared on."""

    ids: tuple[int, ...]
    loss: float


@dataclass(frozen=True, slots=True)
class SearchState:
    step: int  # steps done
    tensors: Mapping[str, Tensor]  # of the method
    finalists: tuple[Finalist, ...]  # lowest loss first
    num_tokens: int  # that the search passed through the model

    def best_with(self, finalist: Finalist) -> tuple[Finalist, ...]:
        """Return the best finalists, this one among them if it is one."""
        return tuple(sorted((*self.finalists, finalist), key=lambda one: (one.loss, one.ids))[:MAX_FINALISTS])


class StateFolder:
    """Saves and loads states.

    Raises ``CapacityError`` if the disk is full, and ``CheckpointError`` for a damaged state.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._resume = ResumeFolder.open(folder, {"digest": digest})

    def save(self, state: SearchState) -> None:
        finalists = [[list(one.ids), one.loss] for one in state.finalists]
        values = {"step": state.step, "finalists": finalists, "num_tokens": state.num_tokens}
        self._resume.save(state.step, SavedState(state.tensors, values))

    def load(self, like: SearchState, max_step: int, vocab_size: int) -> SearchState | None:
        """Return the saved state, or None. ``like``: a state with tensors of the right shape and type."""
        saved = self._resume.load()
        if saved is None:
            return None
        step, num_tokens = saved.values.get("step"), saved.values.get("num_tokens")
        if not is_integer(step, 0, max_step) or not is_integer(num_tokens, 0):
            raise damaged_state(self._resume.folder, "state.json: step or num_tokens is not a count")
        self._check_tensors(saved.tensors, like.tensors, vocab_size)
        finalists = self._finalists(saved.values.get("finalists"), len(like.finalists[0].ids), vocab_size)
        return SearchState(step, saved.tensors, finalists, num_tokens)

    def _check_tensors(self, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], vocab_size: int) -> None:
        are_right = tensors.keys() == like.keys() and all(
            (tensors[name].shape, tensors[name].dtype) == (tensor.shape, tensor.dtype) for name, tensor in like.items()
        )
        if not are_right or not all(_is_in_range(tensor, vocab_size) for tensor in tensors.values()):
            raise damaged_state(self._resume.folder, "its tensors do not fit this search")

    def _finalists(self, values: object, length: int, vocab_size: int) -> tuple[Finalist, ...]:
        if isinstance(values, list) and 1 <= len(values) <= MAX_FINALISTS:
            pairs = [value for value in values if isinstance(value, list) and len(value) == 2]
            found = [
                Finalist(tuple(ids), loss)
                for ids, loss in pairs
                if are_integers(ids, 0, vocab_size - 1) and len(ids) == length and type(loss) is float and math.isfinite(loss)
            ]
            if len(found) == len(values):
                return tuple(found)
        raise damaged_state(self._resume.folder, "state.json: finalists are not token ids with their loss")


def _is_in_range(tensor: Tensor, vocab_size: int) -> bool:
    if tensor.dtype == torch.int64:  # token ids
        return bool(((tensor >= 0) & (tensor < vocab_size)).all())
    return bool(tensor.isfinite().all())
