"""``SoftPrompts``: soft prompts of a model, from folders to virtual token ids."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.formats.soft_prompt import read_soft_prompt
from hasten.core.errors import InvalidRequest, show
from hasten.core.soft_prompt import SoftPrompt
from hasten.runners.soft_prompt_table import SoftPromptTable


class SoftPromptWarning(UserWarning):
    """A soft prompt was trained for another model than the one that loads it."""


@dataclass(frozen=True, slots=True)
class SoftPrompts:
    table: SoftPromptTable
    max_model_len: int
    model_names: frozenset[str]  # of the loaded model: the last parts of its name and its folder

    def load(self, folder: str | os.PathLike[str]) -> SoftPrompt:
        """Read a soft prompt, for the engine's next requests.

        Warns if it names another model. Raises ``CheckpointError`` for an adapter that is broken or does not fit the model.
        """
        path = Path(folder)
        stored = read_soft_prompt(path, self.table.hidden_size, self.max_model_len - 2)
        if stored.base_model is not None and Path(stored.base_model).name not in self.model_names:
            warnings.warn(
                f"the soft prompt in {path} was trained for {show(stored.base_model)}, and this model is "
                f"{' or '.join(sorted(self.model_names))}; for another model its embeddings mean nothing.",
                SoftPromptWarning,
                stacklevel=4,
            )
        digest = self.table.add(stored.embeddings_NE)
        return SoftPrompt(folder=str(path), num_tokens=len(stored.embeddings_NE), digest=digest)

    def virtual_token_ids(self, soft_prompt: object) -> tuple[int, ...]:
        """Return the virtual token ids of a soft prompt, or none for None.

        Raises ``InvalidRequest`` for what this model has not loaded.
        """
        if soft_prompt is None:
            return ()
        if not isinstance(soft_prompt, SoftPrompt):
            allowed = "what load_soft_prompt returned, or None"
            raise InvalidRequest("soft_prompt has the wrong type", got=type(soft_prompt).__name__, allowed=allowed)
        ids = self.table.token_ids(soft_prompt.digest)
        if ids is None:
            raise InvalidRequest(
                "this model has not loaded the soft prompt",
                got=soft_prompt.folder,
                remedy="Load it with load_soft_prompt of the same model",
            )
        return tuple(ids)
