"""``ModelFamily``: the contents of a family file, and finding a family by ``model_type``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from hasten.core.errors import UnsupportedModel, nearest, show
from hasten.models import families
from hasten.models.config import CONFIG_FILE, MAX_LAYERS, ConfigView
from hasten.models.spec import DecoderSpec
from hasten.models.weights import WeightMap


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Each file of ``models/families`` holds one as ``FAMILY``; the file's name is the ``model_type``."""

    read_spec: Callable[[ConfigView], DecoderSpec]
    weights: Callable[[DecoderSpec], WeightMap]
    prefix: str  # of every tensor name but that of lm_head; checkpoints of the bare model leave it out
    ignored: tuple[str, ...] = ()  # patterns (full match) of tensors that old checkpoints hold and that hasten does not need
    _: KW_ONLY
    # the configuration of the same model with the sizes and windows of a spec that ``sizes_fault`` accepts
    with_sizes: Callable[[Mapping[str, Any], DecoderSpec], dict[str, Any]]
    # the sizes that a configuration can have, in words, where those of a spec are others; None: it can have them
    sizes_fault: Callable[[DecoderSpec], str | None] = lambda spec: None

    def spec(self, config: Mapping[str, Any], max_layers: int = MAX_LAYERS, source: str = CONFIG_FILE) -> DecoderSpec:
        """Return the decoder that a configuration describes.

        ``max_layers`` is the number of tensors in the weights, ``source`` the name of the configuration in messages. Raises
        ``UnsupportedModel`` with all unsupported values.
        """
        view = ConfigView(config, max_layers, source)
        spec = self.read_spec(view)
        view.check()
        return spec


def family_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))


def find_family(config: Mapping[str, Any]) -> ModelFamily:
    """Return the family of the ``model_type``. Raises ``UnsupportedModel`` if there is none."""
    model_type, supported = config.get("model_type"), family_names()
    if model_type not in supported:
        suggestion = nearest(model_type, supported)
        raise UnsupportedModel(
            "hasten does not support this model type",
            got=show(model_type),
            allowed=", ".join(supported),
            remedy=suggestion if suggestion.startswith("Did") else "Use a checkpoint of one of these families",
        )
    family = importlib.import_module(f"{families.__name__}.{model_type}").FAMILY
    assert isinstance(family, ModelFamily), model_type
    return family
