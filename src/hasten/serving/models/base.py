"""``ModelRegistry``: what routes ask for models."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from hasten.serving.models.health import Health
from hasten.serving.models.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that the server knows. ``max_model_len``: None until it is loaded for the first time."""

    name: str
    path: str
    created: int
    is_loaded: bool
    max_model_len: int | None = None


class ModelRegistry(Protocol):
    def entries(self) -> Sequence[ModelEntry]:
        """Return all models, loaded or not; the default one first."""

    def loaded(self) -> Sequence[ServedModel]:
        """Return the models that are loaded now. Asking keeps none of them loaded."""

    def use(self, name: str | None) -> AbstractAsyncContextManager[ServedModel]:
        """Return a context in which a model stays loaded.

        It loads first if it has to; None names the default model.

        Raises ``ApiError``: NOT_FOUND for an unknown name, UNAVAILABLE if the model cannot be loaded or the server drains.
        """

    def health(self) -> Health:
        """Return what the last pings have found, at once."""
