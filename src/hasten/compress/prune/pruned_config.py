"""``pruned_config``: the configuration of a pruned checkpoint, which every reader of its family loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hasten.compress.prune.shape import Shape
from hasten.core.errors import InvalidOption
from hasten.models.family import find_family
from hasten.models.spec import DecoderSpec


def pruned_config(config: Mapping[str, Any], spec: DecoderSpec) -> tuple[dict[str, Any], DecoderSpec]:
    """Return the configuration of the sizes of ``spec``, and the spec that it describes.

    ``config`` is that of the unpruned model. The returned spec differs from ``spec`` at most in ``model_type`` and in scales of
    attention that depend on a layer's position. Raises ``InvalidOption`` for sizes that the family's configuration cannot express.
    """
    check_sizes(spec)
    sized = find_family(config).with_sizes(config, spec)
    described = find_family(sized).spec(sized)
    assert _without_scales(described) == _without_scales(spec), (described, spec)
    return sized, described


def check_sizes(spec: DecoderSpec) -> None:
    """Raise ``InvalidOption`` for sizes that the configuration of the family cannot express."""
    fault = find_family({"model_type": spec.model_type}).sizes_fault(spec)
    if fault is not None:
        shape = Shape.of(spec)
        raise InvalidOption(
            f"the configuration of a {spec.model_type} model cannot express these sizes",
            got=f"hidden size {shape.hidden_size}, {shape.num_heads} heads, {shape.num_kv_heads} key/value heads",
            allowed=fault,
        )


def loading_notes(spec: DecoderSpec) -> tuple[str, ...]:
    """Return what other programs need to load a model of these sizes."""
    reads_head_dim = spec.model_type != "qwen2"  # ``Qwen2Attention`` of vLLM 0.33 does not
    if reads_head_dim or spec.hidden_size == spec.layers[0].attention.q_size:
        return ()
    return ("The heads do not add up to the hidden size, and vLLM's own Qwen2 demands it: serve with --model-impl transformers.",)


def _without_scales(spec: DecoderSpec) -> DecoderSpec:
    layers = [dataclasses.replace(x, attention=dataclasses.replace(x.attention, scale=1.0)) for x in spec.layers]
    return dataclasses.replace(spec, layers=tuple(layers), model_type="")
