"""``StudentSource``: where a student comes from, and how it becomes a model to train.

A checkpoint keeps its own tokenizer. The others take the teacher's vocabulary and tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import resolve
from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.model_digest import model_digest
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.prune.pruned_config import pruned_config
from hasten.compress.prune.selection import Selection
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.structured import cut_model
from hasten.core.errors import InvalidOption, UnsupportedModel, show
from hasten.models.family import find_family
from hasten.models.spec import DecoderSpec
from hasten.models.weights import allocation_errors, check_memory
from hasten.training.smaller_config import smaller_config
from hasten.training.target_model import TargetModel, trainable_spec
from hasten.training.trainable_model import TrainableModel

BYTES_PER_PARAMETER = 20  # in training: weight, gradient, two moments and the best weight, float32
_TOKEN_KEYS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # of config.json, that belong to a tokenizer


@dataclass(frozen=True, slots=True)
class StudentCheckpoint:
    """A model by its name: a smaller one, a pruned one, or the teacher itself."""

    name: str


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """A model with random weights that a ``config.json`` describes."""

    file: Path


@dataclass(frozen=True, slots=True)
class TeacherLayers:
    """The teacher's embeddings with some of its layers.

    ``chosen`` is one of: their numbers from 0, such as "0,2,5"; "every-2", every second one (DistilBERT, Sanh et al., 2019); or
    "uniform-4", four from the first to the last one, evenly spaced.
    """

    chosen: str

    def indices(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers of a teacher, ascending. Raises ``InvalidOption``."""
        word, _, number = self.chosen.partition("-")
        indices: Sequence[int] = ()
        try:
            if word == "every":
                indices = range(0, num_layers, int(number))
            elif word == "uniform":
                last = int(number) - 1
                indices = [round(i * (num_layers - 1) / max(1, last)) for i in range(last + 1)] if last < num_layers else ()
            else:
                indices = [int(part) for part in self.chosen.split(",")[: num_layers + 1]]
        except ValueError:
            indices = ()
        if not indices or indices[0] < 0 or indices[-1] >= num_layers or list(indices) != sorted(set(indices)):
            raise InvalidOption(
                "the student's layers are not layers of the teacher",
                got=show(self.chosen),
                allowed=f"ascending numbers from 0 to {num_layers - 1} with commas, every-N, or uniform-N for N layers",
            )
        return tuple(indices)


@dataclass(frozen=True, slots=True)
class SmallerModel:
    """A model with random weights and the teacher's proportions. ``hidden`` None: near 128."""

    layers: int
    hidden: int | None = None


StudentSource = StudentCheckpoint | StudentConfig | TeacherLayers | SmallerModel


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPlan:
    """A student before its weights are read."""

    source: StudentSource
    teacher: Path
    config: Mapping[str, Any]
    spec: DecoderSpec
    folder: Path  # whose tokenizer and templates are the student's
    layers: tuple[int, ...] = ()  # of the teacher, that are copied

    @property
    def is_trained(self) -> bool:
        """Whether it starts from a checkpoint, and so has something to forget."""
        return isinstance(self.source, StudentCheckpoint)

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the initial weights depend on beside the teacher and the seed, as plain data."""
        if isinstance(self.source, StudentCheckpoint):
            return {"student_sha256": model_digest(Checkpoint.open(self.folder)).weights}
        return {"student_config": json.loads(json.dumps(self.config)), "student_layers": list(self.layers)}

    def describe(self) -> str:
        match self.source:
            case StudentCheckpoint(name):
                return name
            case StudentConfig(file):
                return f"random weights of {file.name}"
            case TeacherLayers():
                return f"layers {', '.join(map(str, self.layers))} of the teacher"
            case SmallerModel():
                return f"random weights, {self.spec.num_layers} layers of hidden size {self.spec.hidden_size}"
            case _:
                assert_never(self.source)

    def build(self, teacher: TargetModel | None, seed: int) -> TrainableModel:
        """Return the model with its initial weights, in float32.

        Layers are copied from ``teacher``. Raises ``HastenError``.
        """
        name = self.describe()
        check_memory(BYTES_PER_PARAMETER * num_parameters(self.spec), f"the student ({name}) and its optimizer")
        if isinstance(self.source, StudentCheckpoint):
            return TrainableModel.load(self.folder)
        with allocation_errors(name):
            if not isinstance(self.source, TeacherLayers):
                return TrainableModel.new(self.config, seed)
            assert teacher is not None
            return _cut(teacher, self.layers)


def plan_student(source: StudentSource, teacher: Path, spec: DecoderSpec, *, quiet: bool = True) -> StudentPlan:
    """Return what a student will be; ``spec`` is the teacher's. Reads no weights.

    Raises ``InvalidOption``, ``CheckpointError`` and ``UnsupportedModel``, and ``ModelNotFound`` for an unknown checkpoint.
    """
    config = Checkpoint.open(teacher).config
    match source:
        case StudentCheckpoint(name):
            folder = resolve(name, quiet=quiet)
            if is_gguf(folder):
                raise UnsupportedModel(
                    "a student is a folder of safetensors files", got=folder, remedy="Give the checkpoint that it was made from"
                )
            own = trainable_spec(folder)
            return StudentPlan(source=source, teacher=teacher, config=Checkpoint.open(folder).config, spec=own, folder=folder)
        case StudentConfig(file):
            given = {**_read_config(file), **{name: config[name] for name in _TOKEN_KEYS if name in config}}
            return _with_config(source, teacher, {**given, "vocab_size": spec.vocab_size})
        case TeacherLayers():
            layers = source.indices(spec.num_layers)
            kept = dataclasses.replace(spec, layers=tuple(spec.layers[index] for index in layers))
            return _with_config(source, teacher, config if kept == spec else pruned_config(config, kept)[0], layers)
        case SmallerModel(layers=num_layers, hidden=hidden):
            remedy = "Choose others with --student-size"
            return _with_config(source, teacher, smaller_config(config, layers=num_layers, hidden=hidden, remedy=remedy))
        case _:
            assert_never(source)


def _with_config(source: StudentSource, teacher: Path, config: Mapping[str, Any], layers: tuple[int, ...] = ()) -> StudentPlan:
    spec = find_family(config).spec(config)
    return StudentPlan(source=source, teacher=teacher, config=config, spec=spec, folder=teacher, layers=layers)


def _read_config(file: Path) -> dict[str, Any]:
    """Return a configuration.

    Raises ``CheckpointError``, and ``UnsupportedModel`` for one of quantised weights.
    """
    config = read_json(file)
    if config.get("quantization_config"):
        raise UnsupportedModel(f"{file} describes quantised weights", remedy="Remove its quantization_config")
    return config


def _cut(teacher: TargetModel, layers: tuple[int, ...]) -> TrainableModel:
    """Return a model with copies of these layers, and of all else."""
    model = TrainableModel(teacher.decoder, teacher.ops, teacher.config, teacher.dtype)
    shape = Shape.of(teacher.spec)
    return cut_model(model, dataclasses.replace(shape, num_layers=len(layers)), Selection.everything(shape, layers))
