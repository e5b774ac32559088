"""Soft prompts of a model: from folders to the engine's table, and from names to virtual token ids."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from hasten.checkpoints.formats.soft_prompt import read_soft_prompt
from hasten.core.errors import InvalidRequest, show
from hasten.core.soft_prompt import SoftPrompt
from hasten.runners.soft_prompt_table import SoftPromptTable


class SoftPromptWarning(UserWarning):
    """A soft prompt was trained for another model than the one that loads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSoftPrompt:
    """A soft prompt in an engine's table. Plain data."""

    soft_prompt: SoftPrompt
    first_token_id: int  # of its virtual tokens
    warning: str | None = None  # it was trained for another model


@dataclass(frozen=True, slots=True)
class SoftPromptLoader:
    """The engine's side: it has the table of embeddings."""

    table: SoftPromptTable
    max_model_len: int
    model_names: frozenset[str]  # of the loaded model: the last parts of its name and its folder

    def load(self, folder: str) -> LoadedSoftPrompt:
        """Read a soft prompt, for the engine's next requests.

        Raises ``CheckpointError`` for an adapter that is broken or does not fit the model.
        """
        path = Path(folder)
        stored = read_soft_prompt(path, self.table.hidden_size, self.max_model_len - 2)
        warning = None
        if stored.base_model is not None and Path(stored.base_model).name not in self.model_names:
            warning = (
                f"the soft prompt in {path} was trained for {show(stored.base_model)}, and this model is "
                f"{' or '.join(sorted(self.model_names))}; for another model its embeddings mean nothing."
            )
        digest = self.table.add(stored.embeddings_NE)
        ids = self.table.token_ids(digest)
        assert ids is not None
        soft_prompt = SoftPrompt(folder=str(path), num_tokens=len(ids), digest=digest)
        return LoadedSoftPrompt(soft_prompt=soft_prompt, first_token_id=ids.start, warning=warning)


@dataclass(frozen=True, slots=True)
class SoftPrompts:
    """The caller's side: it knows which soft prompts the engine has loaded."""

    _ids: dict[str, range] = field(default_factory=dict)  # by digest

    def add(self, loaded: LoadedSoftPrompt) -> SoftPrompt:
        """Let requests name a soft prompt that the engine has loaded.

        Warns if it was trained for another model.
        """
        if loaded.warning is not None:
            warnings.warn(loaded.warning, SoftPromptWarning, stacklevel=3)
        found = loaded.soft_prompt
        self._ids[found.digest] = range(loaded.first_token_id, loaded.first_token_id + found.num_tokens)
        return found

    def virtual_token_ids(self, soft_prompt: object) -> tuple[int, ...]:
        """Return the virtual token ids of a soft prompt, or none for None.

        Raises ``InvalidRequest`` for what this model has not loaded.
        """
        if soft_prompt is None:
            return ()
        if not isinstance(soft_prompt, SoftPrompt):
            allowed = "what load_soft_prompt returned, or None"
            raise InvalidRequest("soft_prompt has the wrong type", got=type(soft_prompt).__name__, allowed=allowed)
        ids = self._ids.get(soft_prompt.digest)
        if ids is None:
            raise InvalidRequest(
                "this model has not loaded the soft prompt",
                got=soft_prompt.folder,
                remedy="Load it with load_soft_prompt of the same model",
            )
        return tuple(ids)
