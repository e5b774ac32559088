"""``LayerPlan``: which matrices of a decoder layer are quantised.

The plan is checked against the format before any weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.checkpoints.quantized.writers.base import LM_HEAD, FormatWriter
from hasten.compress.quantize.recipe import Recipe
from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.models.layer_stream import LayerStream
from hasten.models.weights import WeightSource

_SUFFIX = ".format.weight"  # of the targets that are matrices
MAX_LISTED = 20  # faults that a message names


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """A matrix of a layer, and the modules of the checkpoint that are its rows."""

    name: str  # in the ``DecoderLayer``, such as "attention.qkv"
    sources: tuple[WeightSource, ...]  # in the order of rows; targets are names in the layer
    is_quantized: bool

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(source.name.removesuffix(".weight") for source in self.sources)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    index: int
    linears: tuple[LinearPlan, ...]
    others: tuple[WeightSource, ...]  # norms and biases

    @property
    def quantized(self) -> tuple[LinearPlan, ...]:
        return tuple(linear for linear in self.linears if linear.is_quantized)

    @property
    def weights(self) -> dict[str, str]:
        """Name of each quantised matrix -> name of its first weight."""
        return {linear.name: linear.sources[0].name for linear in self.quantized}

    @property
    def unquantized_sources(self) -> tuple[WeightSource, ...]:
        """Norms, biases, and the matrices that stay as they are."""
        return self.others + tuple(source for linear in self.linears if not linear.is_quantized for source in linear.sources)


def plan_layers(stream: LayerStream, ignore: Sequence[str]) -> tuple[LayerPlan, ...]:
    """Return the plan of every layer.

    ``ignore`` names modules, or holds regular expressions after "re:". Raises ``InvalidOption`` for one that matches no module, and
    for one that matches only a part of the modules that engines join into one matrix. Raises ``UnsupportedModel`` for a family
    whose matrices no format describes.
    """
    patterns = [_compile(pattern) for pattern in ignore]
    plans = [_plan_layer(stream, index, patterns) for index in range(stream.spec.num_layers)]
    modules = [module for plan in plans for linear in plan.linears for module in linear.modules]
    for pattern, text in zip(patterns, ignore, strict=True):
        if text != LM_HEAD and not any(pattern.fullmatch(module) for module in modules):
            raise InvalidOption(
                "a pattern to ignore matches no matrix of a layer",
                got=text,
                allowed=f"names such as {modules[0]}, or a regular expression such as re:.*{modules[-1].rpartition('.')[2]}",
            )
    if not any(plan.quantized for plan in plans):
        raise InvalidOption("every matrix is to be ignored, so nothing is left to quantise", remedy="Ignore fewer modules")
    return tuple(plans)


def check_format(stream: LayerStream, plans: Sequence[LayerPlan], recipe: Recipe, writer: FormatWriter) -> None:
    """Raise ``InvalidOption`` that names every matrix that the format cannot hold."""
    faults = writer.find_faults(recipe.spec, matrix_shapes(stream, plans))
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise InvalidOption(
            f"the format {recipe.format} cannot hold this quantisation of {stream.folder}: {'; '.join(faults[:MAX_LISTED])}{more}",
            remedy=_remedy(recipe.spec, faults),
        )


def matrix_shapes(stream: LayerStream, plans: Sequence[LayerPlan]) -> dict[str, tuple[int, int]]:
    """Return the shape [O, I] of each matrix that is quantised, by module."""
    entries = stream.plan.checkpoint.tensors
    return {
        source.name.removesuffix(".weight"): (entries[source.name].shape[0], entries[source.name].shape[1])
        for plan in plans
        for linear in plan.quantized
        for source in linear.sources
    }


def ignored_modules(plans: Sequence[LayerPlan]) -> list[str]:
    """Return the modules that stay as they are."""
    return [module for plan in plans for linear in plan.linears if not linear.is_quantized for module in linear.modules] + [LM_HEAD]


def specs_by_module(plans: Sequence[LayerPlan], recipes: Mapping[int, Recipe]) -> dict[str, QuantSpec]:
    """Return the scheme of each quantised module; ``recipes`` are those of the layers."""
    return {
        module: recipes[plan.index].spec
        for plan in plans
        if plan.index in recipes
        for linear in plan.quantized
        for module in linear.modules
    }


def _plan_layer(stream: LayerStream, index: int, patterns: Sequence[re.Pattern[str]]) -> LayerPlan:
    by_target: dict[str, list[WeightSource]] = {}
    others = []
    for source in stream.layer_sources(index):
        if not source.target.endswith(_SUFFIX):
            others.append(source)
            continue
        if source.transposed:
            raise UnsupportedModel(
                "this family stores its matrices transposed, which no quantised format describes",
                got=stream.spec.model_type,
                remedy="Use the method cast, or the engine option quantization",
            )
        by_target.setdefault(source.target.removesuffix(_SUFFIX), []).append(source)
    linears = []
    for name, sources in by_target.items():
        modules = [source.name.removesuffix(".weight") for source in sources]
        ignored = [module for module in modules if any(pattern.fullmatch(module) for pattern in patterns)]
        if ignored and len(ignored) < len(modules):
            raise InvalidOption(
                "engines join these modules into one matrix, so they are quantised together or not at all",
                got=f"ignored {', '.join(ignored)}, but not {', '.join(module for module in modules if module not in ignored)}",
                remedy="Ignore all of them or none",
            )
        linears.append(LinearPlan(name, tuple(sources), not ignored))
    return LayerPlan(index, tuple(linears), tuple(others))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern[3:] if pattern.startswith("re:") else re.escape(pattern))
    except re.error as error:
        raise InvalidOption("a pattern to ignore is no regular expression", got=f"{pattern} ({error})") from None


def _remedy(spec: QuantSpec, faults: Sequence[str]) -> str:
    if spec.granularity == "group" and any("no multiple of" in fault for fault in faults):
        return "Choose a group size that divides the inputs, such as 32 or 64, or -1 for one scale per output, or ignore them"
    return "Choose another format or other bits, or ignore these modules"
