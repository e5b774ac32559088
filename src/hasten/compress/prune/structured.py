"""``prune_model``: a smaller model without the least important layers, heads, neurons and channels.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

from torch import Tensor

from hasten.compress.prune import importance, layer_score
from hasten.compress.prune.importance.base import Importance
from hasten.compress.prune.layer_score.base import LayerScore
from hasten.compress.prune.layer_subset import LayerSubset, no_tick
from hasten.compress.prune.options import STRUCTURED, PruneOptions
from hasten.compress.prune.pruned_config import check_sizes, pruned_config
from hasten.compress.prune.selection import Selection, select
from hasten.compress.prune.shape import Shape
from hasten.compress.prune.slicing import slice_decoder
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.training.trainable_model import TrainableModel


def prune_model(
    model: TrainableModel, target: Shape, ids_BS: Tensor, options: PruneOptions, tick: Callable[[], None] = no_tick
) -> TrainableModel:
    """Return a new model with the sizes of ``target``, float32. The model is not changed.

    ``ids_BS`` are calibration sequences. Of ``options`` the method, the score of layers and the seed count. Layers are removed
    first; heads, neurons and channels are then scored in the model without them. ``tick`` is called after each batch, and what it
    raises passes. Raises ``InvalidOption`` for sizes that the model does not have or that its configuration cannot express, and
    ``CheckpointError`` for a model that overflows.
    """
    assert options.method in STRUCTURED, options.method
    shape = Shape.of(model.spec)
    check_target(shape, target)
    if target != shape:  # the layers that stay are not chosen yet, but every choice has the same sizes
        check_sizes(target.apply(model.spec))
    subset = LayerSubset.all_of(model)
    if target.num_layers < shape.num_layers:
        subset = _find_layer_score(options).keep(subset, target.num_layers, ids_BS, options.seed, tick)
    if dataclasses.replace(shape, num_layers=target.num_layers) == target:
        return cut_model(model, target, Selection.everything(shape, subset.layers))
    scores = _find_importance(options.method).measure(subset, ids_BS, options.seed, tick)
    if not all(bool(getattr(scores, field.name).isfinite().all()) for field in dataclasses.fields(scores)):
        raise CheckpointError(
            f"the importances by {options.method} are not finite, so no part can be chosen", remedy="Mend the checkpoint"
        )
    return cut_model(model, target, select(scores, target, subset.layers))


def cut_model(model: TrainableModel, target: Shape, selection: Selection) -> TrainableModel:
    """Return a new model of what is selected, whose sizes ``target`` gives.

    Raises ``InvalidOption`` for sizes that the configuration cannot express.
    """
    kept = tuple(model.spec.layers[index] for index in selection.layers)
    spec = target.apply(dataclasses.replace(model.spec, layers=kept))
    config, spec = (dict(model.config), spec) if spec == model.spec else pruned_config(model.config, spec)
    decoder = slice_decoder(model.decoder, selection, spec, model.ops)
    return TrainableModel(decoder.requires_grad_(True), model.ops, config, model.dtype)


def check_target(shape: Shape, target: Shape) -> None:
    """Raise ``InvalidOption`` that lists all sizes to which a model of ``shape`` cannot be cut."""
    faults = []
    for field in dataclasses.fields(Shape):
        most, size = getattr(shape, field.name), getattr(target, field.name)
        if not 1 <= size <= most:
            faults.append(f"{field.name}={size} (allowed: 1 to {most})")
    if not faults:
        group_size = shape.num_heads // shape.num_kv_heads
        allowed = [target.num_kv_heads * per_group for per_group in range(1, group_size + 1)]
        if target.num_heads not in allowed:
            faults.append(
                f"num_heads={target.num_heads} (allowed: {', '.join(map(str, allowed))} with num_kv_heads={target.num_kv_heads})"
            )
    if faults:
        raise InvalidOption("the model cannot be cut to these sizes: " + "; ".join(faults))


def _find_importance(method: str) -> Importance:
    found: Importance = importlib.import_module(f"{importance.__name__}.{method}").METHOD
    return found


def _find_layer_score(options: PruneOptions) -> LayerScore:
    """Return the score of layers; of the method ``random`` it is random, too."""
    name = "random" if options.method == "random" else options.layer_score
    found: LayerScore = importlib.import_module(f"{layer_score.__name__}.{name}").SCORE
    return found
