"""``ModelFamily``: what a family file says, and finding it by ``model_type``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import UnsupportedModel, nearest
from hasten.models import families
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One per file of ``models/families``; the file's name is the ``model_type`` and its ``FAMILY`` is this."""

    spec: Callable[[Mapping[str, Any]], DecoderSpec]
    weights: Callable[[DecoderSpec], WeightMap]
    prefix: str  # of every tensor but the vocabulary projection; checkpoints of the bare model leave it out
    ignored: tuple[str, ...] = ()  # patterns (full match) of tensors that old checkpoints hold and no computation needs


def family_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))


def find_family(config: Mapping[str, Any]) -> ModelFamily:
    """Raises ``UnsupportedModel`` for an unknown ``model_type``, with the known ones and the nearest."""
    name, known = config.get("model_type"), family_names()
    if name not in known:
        close = nearest(str(name), known)
        raise UnsupportedModel(
            "hasten does not decode this model type",
            got=repr(name),
            allowed=", ".join(known),
            remedy=close if close.startswith("Did") else "Use a checkpoint of one of these families",
        )
    family = importlib.import_module(f"{families.__name__}.{name}").FAMILY
    assert isinstance(family, ModelFamily), name
    return family
