"""Exits on disk: translators, classifiers, tables and calibrated thresholds of one model.

::

    exits.{layer}.translate.weight|bias  [E, E], [E]     exits.{layer}.classify.weight|bias  [E], [1], float32
    token_layers  [V] int32, optional                    text_planes [P, E] float32 and text_layers [2**P] int32, optional
    draft_ids  [D] int32, rising, optional
    config.json   model_type "hasten_exits", exit_layers, the model's num_hidden_layers, hidden_size, vocab_size;
                  calibrations; agreements, optional: how often each exit's likeliest token was the model's

A tensor that nobody asks for is refused, as one that is missing is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hasten.checkpoints.formats.draft_ids import checked_ids
from hasten.checkpoints.formats.medusa import READABLE
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import INDEX, SINGLE, only_pickles
from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, TOKEN_CRITERIA
from hasten.core.errors import CheckpointError
from hasten.core.exit_calibration import Calibration
from hasten.layers.exits import Exits, ExitsSpec
from hasten.layers.layer_context import LayerContext
from hasten.layers.prompt_hash_table import PromptHashTable

MODEL_TYPE = "hasten_exits"
MAX_PLANES = 16
_REMEDY = "Use exits that were trained for this model, or train some: hasten train exits"
_PARTS = {"translate.weight": "translate.format.weight", "translate.bias": "translate.bias"}
_PARTS |= {"classify.weight": "classify_weight", "classify.bias": "classify_bias"}
_TABLES = ("token_layers", "text_planes", "text_layers")


@dataclass(frozen=True, slots=True)
class ExitsCheckpoint:
    exits: Exits
    calibrations: tuple[Calibration, ...] = ()
    token_layers: Tensor | None = None  # [V] int32, how many layers compute a token of each id; the model's number: all
    prompt_hash_table: PromptHashTable | None = None
    agreements: tuple[float, ...] | None = None  # of the exits in their order, with the whole model's likeliest token
    draft_ids: Tensor | None = None  # [D] int64, rising: the tokens that first layers guess from; None: all

    def calibration(self, rule: str, tolerance: float) -> Calibration | None:
        """The one for this rule and exactly this tolerance."""
        found = (each for each in self.calibrations if each.rule == rule and abs(each.tolerance - tolerance) < 1e-9)
        return next(found, None)


def read_exits(folder: Path, *, hidden_size: int, num_layers: int, vocab_size: int, layer_context: LayerContext) -> ExitsCheckpoint:
    """The exits of a folder, for a model of these sizes.

    Raises ``CheckpointError`` for pickles, for exits of another model (with both numbers), for tensors that are missing, unexpected
    or of another shape (with all of them), and for layers that the model does not have.
    """
    _refuse_pickles(folder)
    checkpoint = Checkpoint.open(folder)
    spec = _spec(checkpoint, hidden_size, num_layers, vocab_size)
    _check_tensors(checkpoint, spec)
    exits = Exits(spec, layer_context)
    _fill(exits, checkpoint)
    tables = {name: checkpoint.read(name).clone() for name in _TABLES if name in checkpoint.tensors}
    _check_layers(folder, tables, spec)
    prompt_hash_table = PromptHashTable(tables["text_planes"], tables["text_layers"]) if "text_planes" in tables else None
    draft_ids = _draft_ids(checkpoint, vocab_size)
    calibrations, agreements = _calibrations(checkpoint), _agreements(checkpoint, spec)
    return ExitsCheckpoint(exits.eval(), calibrations, tables.get("token_layers"), prompt_hash_table, agreements, draft_ids)


def write_exits(folder: Path, checkpoint: ExitsCheckpoint, *, dtype: torch.dtype, base_model: str | None = None) -> None:
    """Translators in ``dtype``. The exits are dense."""
    spec = checkpoint.exits.spec
    tensors = {
        f"exits.{layer}.{name}": checkpoint.exits.at(layer).get_parameter(parameter).detach()
        for layer in spec.layers
        for name, parameter in _PARTS.items()
    }
    tensors = {name: tensor.to(dtype if ".translate." in name else torch.float32) for name, tensor in tensors.items()}
    if checkpoint.token_layers is not None:
        tensors["token_layers"] = checkpoint.token_layers.to(torch.int32)
    if checkpoint.prompt_hash_table is not None:
        tensors["text_planes"] = checkpoint.prompt_hash_table.planes_PE.float()
        tensors["text_layers"] = checkpoint.prompt_hash_table.layers.to(torch.int32)
    if checkpoint.draft_ids is not None:
        tensors["draft_ids"] = checkpoint.draft_ids.to(torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, metadata={"format": "pt"})
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "exit_layers": list(spec.layers),
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
    }
    config |= {} if base_model is None else {"base_model_name_or_path": base_model}
    config |= {} if checkpoint.agreements is None else {"agreements": list(checkpoint.agreements)}
    config["calibrations"] = [dataclasses.asdict(calibration) for calibration in checkpoint.calibrations]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _refuse_pickles(folder: Path) -> None:
    """Only where there is nothing else to read: the reader tells what else may be wrong with a folder."""
    pickles = only_pickles(folder, SINGLE, INDEX)
    if pickles:
        raise CheckpointError(
            f"{folder} has its exits in a pickle file, and pickle can run code when it is read, so hasten never does",
            got=", ".join(pickles),
            allowed=SINGLE,
            remedy="Train them again (hasten train exits), or convert the file where you trust it: import torch, safetensors.torch "
            f"as s; s.save_file({{k: v.clone() for k, v in torch.load(FILE, weights_only=True).items()}}, {SINGLE!r})",
        )


def _spec(checkpoint: Checkpoint, hidden_size: int, num_layers: int, vocab_size: int) -> ExitsSpec:
    config = checkpoint.config
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{checkpoint.folder} does not hold exits", got=f"model_type={config.get('model_type')!r}", allowed=MODEL_TYPE
        )
    for what, name, ours in (
        ("hidden size", "hidden_size", hidden_size),
        ("depth", "num_hidden_layers", num_layers),
        ("vocabulary", "vocab_size", vocab_size),
    ):
        theirs = config.get(name)
        if type(theirs) is not int or theirs != ours:
            raise CheckpointError(
                f"the exits in {checkpoint.folder} are for a model of another {what}",
                got=f"{name}={theirs!r}",
                allowed=f"{ours}, the model's",
                remedy=_REMEDY,
            )
    layers: Any = config.get("exit_layers")
    sound = isinstance(layers, list) and bool(layers) and all(type(e) is int and 0 < e < num_layers for e in layers)
    if not sound or layers != sorted(set(layers)):
        raise CheckpointError(
            f"exit_layers in config.json of {checkpoint.folder} are no places to leave a model of {num_layers} layers",
            got=layers,
            allowed=f"whole numbers from 1 to {num_layers - 1}, rising",
            remedy=_REMEDY,
        )
    return ExitsSpec(layers=tuple(layers), num_layers=num_layers, hidden_size=hidden_size, vocab_size=vocab_size)


def _check_tensors(checkpoint: Checkpoint, spec: ExitsSpec) -> None:
    size = spec.hidden_size
    shapes = {"translate.weight": (size, size), "translate.bias": (size,), "classify.weight": (size,), "classify.bias": (1,)}
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        f"exits.{layer}.{name}": (shape, READABLE) for layer in spec.layers for name, shape in shapes.items()
    }
    held = checkpoint.tensors
    if "token_layers" in held:
        expected["token_layers"] = ((spec.vocab_size,), ("I32",))
    if "draft_ids" in held:
        shape = held["draft_ids"].shape
        fits = len(shape) == 1 and 0 < shape[0] <= spec.vocab_size
        expected["draft_ids"] = ((shape if fits else (spec.vocab_size,)), ("I32",))
    if "text_planes" in held or "text_layers" in held:
        shape = held["text_planes"].shape if "text_planes" in held else ()
        planes = shape[0] if shape and 0 < shape[0] <= MAX_PLANES else 1
        expected["text_planes"] = ((planes, size), ("F32",))
        expected["text_layers"] = ((1 << planes,), ("I32",))
    faults = [f"{name} {list(shape)} is missing" for name, (shape, _) in expected.items() if name not in held]
    for name, entry in held.items():
        if name not in expected:
            faults.append(f"{name} {list(entry.shape)} is not expected")
            continue
        shape, kinds = expected[name]
        if entry.shape != shape:
            faults.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
        elif entry.dtype not in kinds:
            faults.append(f"{name} is {entry.dtype}, expected {' or '.join(kinds)}")
    if faults:
        raise CheckpointError(
            f"the tensors of {checkpoint.folder} are not those of exits after {', '.join(map(str, spec.layers))} layers "
            f"({len(faults)} fault{'s' if len(faults) > 1 else ''}): {'; '.join(faults)}",
            remedy="Check that config.json belongs to these weights, and train the exits again if it does",
        )


def _fill(exits: Exits, checkpoint: Checkpoint) -> None:
    for layer in exits.spec.layers:
        for name, parameter in _PARTS.items():
            tensor = checkpoint.read(f"exits.{layer}.{name}")
            if name == "translate.weight":
                exits.at(layer).translate.format.load("weight", tensor, slice(None), transposed=False)
            else:
                exits.at(layer).get_parameter(parameter).copy_(tensor)


def _check_layers(folder: Path, tables: Mapping[str, Tensor], spec: ExitsSpec) -> None:
    """A table sends tokens and texts to exits that exist, or to the end."""
    places = {*spec.layers, spec.num_layers}
    for name in ("token_layers", "text_layers"):
        others = sorted(set(tables[name].tolist()) - places) if name in tables else []
        if others:
            raise CheckpointError(
                f"{name} of {folder} names layers that have no exit",
                got=", ".join(map(str, others)),
                allowed=", ".join(map(str, sorted(places))),
                remedy=_REMEDY,
            )


def _draft_ids(checkpoint: Checkpoint, vocab_size: int) -> Tensor | None:
    if "draft_ids" not in checkpoint.tensors:
        return None
    return checked_ids(checkpoint.read("draft_ids"), vocab_size, checkpoint.folder, remedy=_REMEDY)


def _agreements(checkpoint: Checkpoint, spec: ExitsSpec) -> tuple[float, ...] | None:
    found: Any = checkpoint.config.get("agreements")
    if found is None:
        return None
    count = len(spec.layers)
    sound = isinstance(found, list) and len(found) == count
    if not sound or not all(type(share) in (int, float) and 0 <= share <= 1 for share in found):
        raise CheckpointError(
            f"agreements in config.json of {checkpoint.folder} are not those of {count} exits",
            got=found,
            allowed=f"{count} shares from 0 to 1",
            remedy="Leave them out, or train the exits again",
        )
    return tuple(found)


def _calibrations(checkpoint: Checkpoint) -> tuple[Calibration, ...]:
    found = checkpoint.config.get("calibrations", [])
    faults = ["not a list"] if not isinstance(found, list) else [fault for each in found if (fault := _calibration_fault(each))]
    if faults:
        raise CheckpointError(
            f"calibrations in config.json of {checkpoint.folder} cannot be understood: {'; '.join(faults)}",
            remedy="Leave them out and give thresholds yourself, or train the exits again",
        )
    return tuple(Calibration(**each) for each in found)


def _calibration_fault(value: object) -> str | None:
    names = [field.name for field in dataclasses.fields(Calibration)]
    if not isinstance(value, dict) or set(value) != set(names):
        return f"{value!r} has not exactly the fields {', '.join(names)}"
    if value["rule"] not in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
        return f"rule={value['rule']!r} is no measure"
    for name, low, high in (
        ("tolerance", 0, 1),
        ("certainty", 0, 1),
        ("threshold", 0, 2),
        ("mean_layers", 0, 1e6),
    ):
        number = value[name]
        if not (type(number) in (int, float) and low <= number <= high):
            return f"{name}={number!r} is not between {low} and {high:g}"
    decay = DECAY if value["rule"] in TOKEN_CRITERIA else None
    if value["decay"] != decay:
        return f"decay={value['decay']!r}, but thresholds of {value['rule']} are used with {decay}"
    if type(value["mean_risk"]) not in (int, float):
        return f"mean_risk={value['mean_risk']!r} is no number"
    counts = [name for name in ("window", "num_texts") if type(value[name]) is not int or value[name] < 1]
    return f"{counts[0]}={value[counts[0]]!r} is no whole number from 1" if counts else None
