"""``load_decoder``: from a checkpoint folder to a decoder that is ready to run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.reader import QUANTIZED, Checkpoint, ExpectedTensor
from hasten.checkpoints.shards import TensorEntry
from hasten.core.errors import CheckpointError, InvalidOption, nearest, show
from hasten.layers.formats.base import WeightFormatFactory
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.formats.stored_matrix import are_equal
from hasten.models.decoder import Decoder
from hasten.models.family import ModelFamily, find_family
from hasten.models.spec import DecoderSpec
from hasten.models.stored_formats import use_stored_formats
from hasten.models.weight_summary import WeightSummary, summarize_weights
from hasten.models.weights import (
    Progress,
    WeightMap,
    allocation_errors,
    check_memory,
    expected_tensors,
    load_weights,
    weight_bytes,
)
from hasten.models.zero_biases import zero_biases
from hasten.ops.base import Ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}  # as in safetensors: as in PyTorch
LM_HEAD = "lm_head.weight"  # in the checkpoints of every family


@dataclass(frozen=True, slots=True)
class LoadedModel:
    decoder: Decoder
    spec: DecoderSpec
    config: dict[str, Any]
    generation_config: dict[str, Any]
    folder: Path
    dtype: torch.dtype
    weights: WeightSummary


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """A decoder that fits its checkpoint, before any weight is read."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    dtype: torch.dtype
    sources: WeightMap
    formats: WeightFormatFactory
    decoder: Decoder  # on the meta device, with the formats that it would have

    @property
    def weight_bytes(self) -> int:
        """The memory that the weights take, without padding."""
        return weight_bytes(self.decoder)

    def summary(self) -> WeightSummary:
        return summarize_weights(self.decoder, self.sources, self.checkpoint)

    def load(self, progress: Progress | None = None, other_bytes: int = 0) -> LoadedModel:
        """Read the weights. ``other_bytes``: weights that will be loaded beside these.

        Raises ``CapacityError`` if the weights are larger than the free memory, before any is read, and ``CheckpointError`` for
        weights that cannot be read.
        """
        checkpoint, name = self.checkpoint, str(self.checkpoint.folder)
        is_quantized = bool(checkpoint.matrices)
        check_memory(self.weight_bytes, name, other_bytes, is_quantized=is_quantized)
        with allocation_errors(name, is_quantized=is_quantized):
            decoder = Decoder(self.spec, self.decoder.ops, self.dtype, formats=self.formats)
            use_stored_formats(decoder, self.sources, checkpoint.matrices, self.formats)
            load_weights(decoder, checkpoint, self.sources, progress)
        weights = summarize_weights(decoder, self.sources, checkpoint)
        settings = checkpoint.config, checkpoint.generation_config
        return LoadedModel(decoder.eval(), self.spec, *settings, checkpoint.folder, self.dtype, weights)


def plan_decoder(
    checkpoint: Checkpoint, *, dtype: str = "auto", ops: Ops, formats: Callable[[torch.dtype], WeightFormatFactory] | None = None
) -> DecoderPlan:
    """Return the decoder that fits a checkpoint. The arguments are those of ``load_decoder``.

    Raises ``CheckpointError`` (``UnsupportedModel``) with all faults of the checkpoint, and ``InvalidOption`` for an unknown
    ``dtype``.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InvalidOption(
            "unknown dtype", got=repr(dtype), allowed=f"auto, {', '.join(DTYPES)}", remedy=nearest(dtype, [*DTYPES, "auto"])
        )
    family = find_family(checkpoint.config)
    spec = _resolve_tied_embeddings(checkpoint, family, read_spec(checkpoint))
    torch_dtype = DTYPES[_checkpoint_dtype(checkpoint) if dtype == "auto" else dtype]
    sources = _weight_map(checkpoint, family, spec)
    factory = DenseFormatFactory(ops, torch_dtype) if formats is None else formats(torch_dtype)
    # The meta device allocates nothing, so a checkpoint of the wrong shape or size fails before it takes memory.
    meta = factory.on_meta()
    planned = Decoder(spec, ops, torch_dtype, "meta", meta)
    use_stored_formats(planned, sources, checkpoint.matrices, meta)
    expected = expected_tensors(sources, planned, checkpoint.matrices)
    ignored = _ignored_tensors(checkpoint, family, spec) | zero_biases(checkpoint, expected)
    described = "config.json describes" if checkpoint.gguf is None else "metadata describes"
    checkpoint.check_tensors(ignored | expected, f"the {spec.model_type} model that its {described}")
    return DecoderPlan(checkpoint, spec, torch_dtype, sources, factory, planned)


def load_decoder(
    folder: Path,
    *,
    dtype: str = "auto",
    ops: Ops,
    formats: Callable[[torch.dtype], WeightFormatFactory] | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Open, plan and load the model of a local folder, or of a GGUF file.

    ``dtype`` "auto" is the dtype of the checkpoint. ``formats`` returns the weight formats for a dtype; None makes all matrices
    dense.

    Raises ``CheckpointError`` (``ModelNotFound``, ``UnsupportedModel``) with all faults of the folder, and ``CapacityError`` if the
    weights are larger than the free memory, before any weight is read. Raises ``InvalidOption`` for an unknown ``dtype``.
    """
    return plan_decoder(Checkpoint.open(folder), dtype=dtype, ops=ops, formats=formats).load(progress)


def weight_dtype(entry: TensorEntry, dtype: str) -> torch.dtype | None:
    """Return the dtype in which a stored tensor is loaded, or None if it holds no weights.

    ``dtype`` is that of ``load_decoder``.
    """
    if entry.dtype not in STORED_DTYPES:
        return None
    return DTYPES[STORED_DTYPES[entry.dtype] if dtype == "auto" else dtype]


def read_spec(checkpoint: Checkpoint) -> DecoderSpec:
    """Return the decoder that the configuration describes. Raises ``UnsupportedModel``."""
    config, source = checkpoint.config, checkpoint.config_name
    return find_family(config).spec(config, max_layers=checkpoint.num_weights, source=source)


def check_draft_vocabulary(draft: DecoderSpec, name: str, vocab_size: int, remedy: str) -> None:
    """Raise ``InvalidOption`` if the draft model's vocabulary is not of this size."""
    if draft.vocab_size != vocab_size:
        raise InvalidOption(
            "the vocabularies of the draft model and the model differ",
            got=f"{draft.vocab_size} tokens in {name}",
            allowed=f"{vocab_size} tokens",
            remedy=remedy,
        )


def _checkpoint_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype in the configuration, or that of the first stored matrix if there is none."""
    configured = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    if configured is None:
        stored = next((entry.dtype for entry in checkpoint.tensors.values() if entry.dtype in STORED_DTYPES), "F32")
        return STORED_DTYPES[stored]
    name = str(configured).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(
            f"hasten does not compute in the dtype that {checkpoint.config_name} names",
            got=show(configured),
            allowed=", ".join(DTYPES),
            remedy="Choose one with the option dtype",
        )
    return name


def _has_prefix(checkpoint: Checkpoint, family: ModelFamily) -> bool:
    return any(name.startswith(family.prefix) for name in (*checkpoint.tensors, *checkpoint.matrices))


def _weight_map(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec) -> WeightMap:
    """Return the family's weight map with the tensor names that this checkpoint uses.

    Checkpoints of the bare model leave out the prefix, and tied ones may store the embedding under the name of ``lm_head``.
    """
    sources, has_prefix = [], _has_prefix(checkpoint, family)
    for source in family.weights(spec):
        name = source.name if has_prefix else source.name.removeprefix(family.prefix)
        is_embedding = source.target == "embedding.format.weight"
        if is_embedding and spec.tie_word_embeddings and not checkpoint.has(name) and checkpoint.has(LM_HEAD):
            name = LM_HEAD
        sources.append(dataclasses.replace(source, name=name))
    return tuple(sources)


def _ignored_tensors(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec) -> dict[str, ExpectedTensor]:
    """Return the stored tensors that the family ignores, and ``lm_head`` if it is a copy of the embedding."""
    prefix = "" if _has_prefix(checkpoint, family) else family.prefix
    stored: dict[str, ExpectedTensor] = {name: (entry.shape, (entry.dtype,)) for name, entry in checkpoint.tensors.items()}
    stored |= {name: (matrix.shape, (QUANTIZED,)) for name, matrix in checkpoint.matrices.items()}
    return {
        name: expected
        for name, expected in stored.items()
        if (name == LM_HEAD and spec.tie_word_embeddings) or any(re.fullmatch(pattern, prefix + name) for pattern in family.ignored)
    }


def _resolve_tied_embeddings(checkpoint: Checkpoint, family: ModelFamily, spec: DecoderSpec) -> DecoderSpec:
    """Untie ``lm_head`` if the checkpoint holds one that differs from the embedding."""
    if not spec.tie_word_embeddings:
        return spec
    untied = dataclasses.replace(spec, tie_word_embeddings=False)
    names = {source.target: source.name for source in _weight_map(checkpoint, family, untied)}
    embedding = names["embedding.format.weight"]
    if not (checkpoint.has(LM_HEAD) and checkpoint.has(embedding)):
        return spec
    matrices = [checkpoint.matrices.get(name) for name in (LM_HEAD, embedding)]
    if matrices[0] is not None or matrices[1] is not None:
        return spec if are_equal(*matrices) else untied
    stored = [checkpoint.tensors[name] for name in (LM_HEAD, embedding)]
    if any(entry.dtype not in STORED_DTYPES for entry in stored):
        return spec
    equal = stored[0].dtype == stored[1].dtype and torch.equal(checkpoint.read(LM_HEAD), checkpoint.read(embedding))
    return spec if equal else untied
