"""``SoftPrompts``: which soft prompts requests may name; ``SoftPromptLoader`` is the engine's side."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from hasten.core.errors import InvalidRequest
from hasten.core.soft_prompt import SoftPrompt


class SoftPromptWarning(UserWarning):
    """A soft prompt was trained for another model than the one that loads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSoftPrompt:
    """A soft prompt in an engine's table. Plain data."""

    soft_prompt: SoftPrompt
    first_token_id: int  # of its virtual tokens
    warning: str | None = None  # it was trained for another model


@dataclass(frozen=True, slots=True)
class SoftPrompts:
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
