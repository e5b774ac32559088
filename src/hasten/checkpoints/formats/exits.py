"""Early exits on disk: the exit heads, exit-layer tables and calibrated thresholds of one model.

::

    exits.{layer}.translate.weight|bias  [E, E], [E]     exits.{layer}.classify.weight|bias  [E], [1], float32
    token_layers  [V] int32, optional                    text_planes [P, E] float32 and text_layers [2**P] int32, optional
    draft_ids  [D] int32, rising, optional
    config.json   model_type "hasten_exits", exit_layers, the model's num_hidden_layers, hidden_size, vocab_size;
                  calibrations; agreements, optional: share of tokens where the exit's top token is the model's

An unexpected tensor is refused, and so is a missing one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.finite_weights import finite_weights
from hasten.checkpoints.formats.draft_ids import DRAFT_IDS, check_draft_ids
from hasten.checkpoints.json_values import are_integers, are_shares, is_integer
from hasten.checkpoints.reader import FLOAT_DTYPES, Checkpoint, ExpectedTensor
from hasten.checkpoints.shards import INDEX, SINGLE, refuse_pickles, write_checkpoint
from hasten.core.early_exit import DECAY, REQUEST_CRITERIA, TOKEN_CRITERIA, ExitCalibration
from hasten.core.errors import CheckpointError
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec, PromptHashTable
from hasten.layers.formats.base import check_finite
from hasten.layers.layer_context import LayerContext

MODEL_TYPE = "hasten_exits"
MAX_PLANES = 16
_REMEDY = "Use exits that were trained for this model, or train some: hasten train exits"
# name on disk -> parameter of ``ExitHead``
_PARAMETERS = {
    "translate.weight": "translate.format.weight",
    "translate.bias": "translate.bias",
    "classify.weight": "classify_weight",
    "classify.bias": "classify_bias",
}


@dataclass(frozen=True, slots=True)
class ExitsCheckpoint:
    """Everything that training adds to a model for early exit."""

    exits: ExitHeads
    calibrations: tuple[ExitCalibration, ...] = ()
    token_layers: Tensor | None = None  # [V] int32, layers that compute a token of each id; the model's number: all
    prompt_hash_table: PromptHashTable | None = None
    agreements: tuple[float, ...] | None = None  # per exit: share of tokens where its top token is the model's
    draft_ids: Tensor | None = None  # [D] int64, rising: the draft vocabulary of self-drafting; None: all tokens

    def calibration(self, rule: str, tolerance: float) -> ExitCalibration | None:
        """Return the calibration of this rule for exactly this tolerance."""
        matches = (c for c in self.calibrations if c.rule == rule and abs(c.tolerance - tolerance) < 1e-9)
        return next(matches, None)


def read_exits(folder: Path, *, hidden_size: int, num_layers: int, vocab_size: int, layer_context: LayerContext) -> ExitsCheckpoint:
    """Return the exits of a folder, for a model of these sizes.

    Raises ``CheckpointError`` for pickles, for exits of another model (with both numbers), and for tensors that are missing,
    unexpected or of another shape (with all of them). The same error reports exit layers that the model does not have.
    """
    remedy = (
        "Train them again (hasten train exits), or convert the file if you trust it: import torch, safetensors.torch as s; "
        f"s.save_file({{k: v.clone() for k, v in torch.load(FILE, weights_only=True).items()}}, {SINGLE!r})"
    )
    refuse_pickles(folder, SINGLE, INDEX, remedy=remedy)
    checkpoint = Checkpoint.open(folder)
    spec = _read_spec(checkpoint, hidden_size, num_layers, vocab_size)
    contents = f"exits after {', '.join(map(str, spec.layers))} layers"
    checkpoint.check_tensors(_expected_tensors(checkpoint, spec), contents)
    exits = ExitHeads(spec, layer_context)
    _load_exit_heads(exits, checkpoint)
    token_layers, text_layers = (_read_exit_layers(checkpoint, name, spec) for name in ("token_layers", "text_layers"))
    draft_ids = None
    if DRAFT_IDS in checkpoint.tensors:
        draft_ids = check_draft_ids(checkpoint.read(DRAFT_IDS), vocab_size, folder, remedy=_REMEDY)
    return ExitsCheckpoint(
        exits=exits.eval(),
        calibrations=_read_calibrations(checkpoint),
        token_layers=token_layers,
        prompt_hash_table=None if text_layers is None else PromptHashTable(_read_planes(checkpoint), text_layers),
        agreements=_read_agreements(checkpoint, len(spec.layers)),
        draft_ids=draft_ids,
    )


def write_exits(folder: Path, checkpoint: ExitsCheckpoint, *, dtype: torch.dtype, base_model: str | None = None) -> None:
    """Write the exits, which are dense. The matrices and biases of the tuned lens are stored in ``dtype``."""
    spec = checkpoint.exits.spec
    tensors: dict[str, Tensor] = {}
    for layer in spec.layers:
        for name, parameter in _PARAMETERS.items():
            stored_dtype = dtype if name.startswith("translate") else torch.float32
            tensors[f"exits.{layer}.{name}"] = checkpoint.exits.at(layer).get_parameter(parameter).to(stored_dtype)
    if checkpoint.token_layers is not None:
        tensors["token_layers"] = checkpoint.token_layers.to(torch.int32)
    if checkpoint.prompt_hash_table is not None:
        tensors["text_planes"] = checkpoint.prompt_hash_table.planes_PE.float()
        tensors["text_layers"] = checkpoint.prompt_hash_table.layers.to(torch.int32)
    if checkpoint.draft_ids is not None:
        tensors[DRAFT_IDS] = checkpoint.draft_ids.to(torch.int32)
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
    write_checkpoint(folder, tensors, config)


def _read_spec(checkpoint: Checkpoint, hidden_size: int, num_layers: int, vocab_size: int) -> ExitHeadsSpec:
    config = checkpoint.config
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{checkpoint.folder} does not hold exits", got=f"model_type={config.get('model_type')!r}", allowed=MODEL_TYPE
        )
    for what, name, model_size in (
        ("hidden size", "hidden_size", hidden_size),
        ("number of layers", "num_hidden_layers", num_layers),
        ("vocabulary", "vocab_size", vocab_size),
    ):
        size = config.get(name)
        if type(size) is not int or size != model_size:
            raise CheckpointError(
                f"the exits in {checkpoint.folder} are for a model of another {what}",
                got=f"{name}={size!r}",
                allowed=f"{model_size}, the model's",
                remedy=_REMEDY,
            )
    layers = config.get("exit_layers")
    if not are_integers(layers) or not layers or layers != sorted(set(layers)) or layers[-1] >= num_layers:
        raise CheckpointError(
            f"exit_layers in config.json of {checkpoint.folder} are not exit layers of a model with {num_layers} layers",
            got=layers,
            allowed=f"whole numbers from 1 to {num_layers - 1}, rising",
            remedy=_REMEDY,
        )
    return ExitHeadsSpec(layers=tuple(layers), num_layers=num_layers, hidden_size=hidden_size, vocab_size=vocab_size)


def _expected_tensors(checkpoint: Checkpoint, spec: ExitHeadsSpec) -> dict[str, ExpectedTensor]:
    """Return the tensors that must be there.

    Tensors of variable length are expected with their stored length, if it is within the limits.
    """
    size = spec.hidden_size
    shapes = {"translate.weight": (size, size), "translate.bias": (size,), "classify.weight": (size,), "classify.bias": (1,)}
    expected: dict[str, ExpectedTensor] = {
        f"exits.{layer}.{name}": (shape, FLOAT_DTYPES) for layer in spec.layers for name, shape in shapes.items()
    }
    stored = checkpoint.tensors
    if "token_layers" in stored:
        expected["token_layers"] = ((spec.vocab_size,), ("I32",))
    if DRAFT_IDS in stored:
        shape = stored[DRAFT_IDS].shape
        valid = len(shape) == 1 and 0 < shape[0] <= spec.vocab_size
        expected[DRAFT_IDS] = (shape if valid else (spec.vocab_size,), ("I32",))
    if "text_planes" in stored or "text_layers" in stored:
        shape = stored["text_planes"].shape if "text_planes" in stored else ()
        num_planes = shape[0] if shape and 0 < shape[0] <= MAX_PLANES else 1
        expected["text_planes"] = ((num_planes, size), ("F32",))
        expected["text_layers"] = ((1 << num_planes,), ("I32",))
    return expected


def _load_exit_heads(exits: ExitHeads, checkpoint: Checkpoint) -> None:
    for layer in exits.spec.layers:
        for name, parameter in _PARAMETERS.items():
            tensor = checkpoint.read(f"exits.{layer}.{name}")
            with finite_weights(f"exits.{layer}.{name}", checkpoint.folder):
                if name == "translate.weight":
                    exits.at(layer).translate.format.load("weight", tensor, slice(None), transposed=False)
                else:
                    check_finite(exits.at(layer).get_parameter(parameter).copy_(tensor))


def _read_planes(checkpoint: Checkpoint) -> Tensor:
    planes_PE = checkpoint.read("text_planes").clone()
    with finite_weights("text_planes", checkpoint.folder):
        check_finite(planes_PE)
    return planes_PE


def _read_exit_layers(checkpoint: Checkpoint, name: str, spec: ExitHeadsSpec) -> Tensor | None:
    """Return a table of exit layers.

    Raises ``CheckpointError`` for a layer that is neither an exit nor the last layer.
    """
    if name not in checkpoint.tensors:
        return None
    table = checkpoint.read(name).clone()
    allowed = [*spec.layers, spec.num_layers]
    unknown = sorted(set(table.tolist()) - set(allowed))
    if unknown:
        raise CheckpointError(
            f"{name} of {checkpoint.folder} names layers that have no exit",
            got=", ".join(map(str, unknown)),
            allowed=", ".join(map(str, allowed)),
            remedy=_REMEDY,
        )
    return table


def _read_agreements(checkpoint: Checkpoint, num_exits: int) -> tuple[float, ...] | None:
    agreements = checkpoint.config.get("agreements")
    if agreements is None:
        return None
    if not are_shares(agreements) or len(agreements) != num_exits:
        raise CheckpointError(
            f"agreements in config.json of {checkpoint.folder} are not those of {num_exits} exits",
            got=agreements,
            allowed=f"{num_exits} shares from 0 to 1",
            remedy="Leave them out, or train the exits again",
        )
    return tuple(agreements)


def _read_calibrations(checkpoint: Checkpoint) -> tuple[ExitCalibration, ...]:
    calibrations = checkpoint.config.get("calibrations", [])
    if isinstance(calibrations, list):
        faults = [fault for calibration in calibrations if (fault := _find_fault(calibration)) is not None]
    else:
        faults = ["not a list"]
    if faults:
        raise CheckpointError(
            f"calibrations in config.json of {checkpoint.folder} are not valid: {'; '.join(faults)}",
            remedy="Leave them out and set exit_threshold yourself, or train the exits again",
        )
    return tuple(ExitCalibration(**calibration) for calibration in calibrations)


def _find_fault(calibration: object) -> str | None:
    """Return what is wrong with one entry of ``calibrations``."""
    names = [field.name for field in dataclasses.fields(ExitCalibration)]
    if not isinstance(calibration, dict) or set(calibration) != set(names):
        return f"{calibration!r} has not exactly the fields {', '.join(names)}"
    rule, decay = calibration["rule"], calibration["decay"]
    if rule not in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
        return f"rule={rule!r} is not a confidence measure"
    limits = {"tolerance": (0, 1), "certainty": (0, 1), "threshold": (0, 2), "mean_layers": (0, 1e6), "mean_risk": (-1e6, 1e6)}
    for name, (low, high) in limits.items():
        value = calibration[name]
        if type(value) not in (int, float) or not low <= value <= high:
            return f"{name}={value!r} is not between {low:g} and {high:g}"
    request_decay = DECAY if rule in TOKEN_CRITERIA else None
    if decay != request_decay:
        return f"decay={decay!r}, but thresholds of {rule} are used with {request_decay}"
    for name in ("window", "num_texts"):
        if not is_integer(calibration[name]):
            return f"{name}={calibration[name]!r} is not a whole number from 1"
    return None
