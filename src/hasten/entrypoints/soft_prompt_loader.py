"""``SoftPromptLoader``: from folders to the engine's table of soft prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.formats.soft_prompt import read_soft_prompt
from hasten.core.errors import show
from hasten.core.soft_prompt import SoftPrompt
from hasten.entrypoints.soft_prompts import LoadedSoftPrompt
from hasten.runners.soft_prompt_table import SoftPromptTable


@dataclass(frozen=True, slots=True)
class SoftPromptLoader:
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
