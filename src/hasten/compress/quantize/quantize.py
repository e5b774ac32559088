"""``quantize``: from a checkpoint folder to a quantised one, one layer in memory at a time.

Shape suffixes: B sequences · S tokens per sequence · E hidden size.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.merge_parts import merge_parts
from hasten.compress.model_card import ModelCard, write_model_card
from hasten.compress.quantize.calibration import calibration_digest, calibration_ids
from hasten.compress.quantize.calibration_state import CalibrationState
from hasten.compress.quantize.card import build_card
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.plan import LayerPlan, check_format, ignored_modules, plan_layers, specs_by_module
from hasten.compress.quantize.quantization_run import Progress, QuantizationRun, ShouldStop, Steps, Stopped, part_name
from hasten.compress.quantize.quantize_layer import quantize_layer
from hasten.compress.quantize.recipe import Recipe, build_recipe
from hasten.compress.source_digest import source_digest
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import UnsupportedModel
from hasten.models.layer_stream import SEQUENCES, LayerStream
from hasten.text.tokenizer import TextTokenizer
from hasten.training.resume import write_errors
from hasten.training.set_threads import set_threads


def quantize(
    model: str,
    out: Path,
    options: QuantizeOptions | None = None,
    *,
    method_options: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    should_stop: ShouldStop = lambda: False,
) -> CompressedModel | None:
    """Write a quantised copy of a model to the new folder ``out``, which appears when it is complete.

    ``method_options`` are fields of the methods. ``calibration`` is a file of text; None: the text that ships with hasten.
    ``resume``: continue a run that was stopped or killed; the result has the same bytes with the same number of threads. None if
    ``should_stop``, asked after each step, returned True; the run can then be resumed.

    Raises ``InvalidOption`` for options that the model or the format does not allow, ``UnsupportedModel`` for a source that is
    already quantised, ``CheckpointError`` if a method fails and ``CapacityError`` for a full disk. ``out`` does not exist then.
    """
    started = time.monotonic()
    options = options or QuantizeOptions()
    set_threads(options.threads)
    recipe, writer = build_recipe(options, method_options), find_writer(options.format)
    stream = open_source(model, quiet=progress is None)
    plans = plan_layers(stream, options.ignore)
    check_format(stream, plans, recipe, writer)
    ids_BS = read_calibration(stream, calibration, options) if recipe.needs_calibration else None
    settings = run_settings(stream, options, method_options, ids_BS)
    work = WorkFolder.open(out, settings, resume=resume)
    work.check_space(needed_bytes(stream, ids_BS))
    steps = Steps(len(plans) * (2 * num_chunks(ids_BS) + matrix_steps(recipe)), progress, should_stop)
    run = QuantizationRun(stream, plans, recipe, writer, ids_BS, work, steps)
    try:
        names = _quantize_layers(run)
        card = build_card(
            model, stream.folder, work.out, options, recipe, method_options=method_options, calibration=calibration, ids_BS=ids_BS
        )
        assemble(run, names, {plan.index: recipe for plan in plans}, card)
    except Stopped:
        return None
    work.publish()
    return CompressedModel(
        folder=work.out,
        source=stream.folder,
        card=card,
        seconds=time.monotonic() - started,
    )


def open_source(model: str, *, quiet: bool) -> LayerStream:
    """Return the layers of a model in floating point. Raises ``UnsupportedModel`` for a quantised one."""
    folder = resolve(model, quiet=quiet)
    checkpoint = Checkpoint.open(folder)
    matrix = next(iter(checkpoint.matrices.values()), None)
    if matrix is not None or checkpoint.gguf is not None:
        raise UnsupportedModel(
            f"the weights of {folder} cannot be quantised again" if matrix else f"{folder} is not a folder of safetensors files",
            got=matrix.spec.describe() if matrix else "a GGUF file",
            allowed="a folder with weights in float32, bfloat16 or float16",
            remedy="Quantise the original model",
        )
    return LayerStream.open(checkpoint)


def read_calibration(stream: LayerStream, file: Path | None, options: QuantizeOptions) -> Tensor:
    """Return the calibration windows, int64 [B, S]. Raises ``InvalidOption``."""
    tokenizer = TextTokenizer.load(stream.folder, stream.spec.vocab_size)
    return calibration_ids(
        file,
        tokenizer,
        samples=options.samples,
        seq_len=options.seq_len,
        seed=options.seed,
        max_positions=stream.spec.max_positions,
    )


def run_settings(
    stream: LayerStream, options: QuantizeOptions, method_options: Mapping[str, Any] | None, ids_BS: Tensor | None
) -> dict[str, Any]:
    """Return everything that the result depends on, as plain data. A run resumes only with equal settings."""
    values = dataclasses.asdict(options)
    del values["threads"]
    values["method_options"] = dict(method_options or {})
    return {
        **values,
        "model_sha256": source_digest(stream.plan.checkpoint),
        "calibration": None if ids_BS is None else calibration_digest(ids_BS),
    }


def assemble(run: QuantizationRun, layer_parts: Sequence[str], recipes: Mapping[int, Recipe], card: ModelCard) -> None:
    """Write the files of the checkpoint from its finished parts.

    ``recipes`` are those of the quantised layers.
    """
    folder = merge_parts(run.stream, run.work, layer_parts)
    with write_errors(folder):
        kept = [plan.index for plan in run.plans if plan.index not in recipes]
        ignored = ignored_modules(run.plans) + [
            module for plan in run.plans if plan.index in kept for linear in plan.quantized for module in linear.modules
        ]
        settings = run.writer.settings(specs_by_module(run.plans, recipes), ignored)
        config = {**run.stream.plan.checkpoint.config, "quantization_config": settings}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder, card)


def _quantize_layers(run: QuantizationRun) -> list[str]:
    """Quantise every layer and return the names of the parts. Continues a run that was stopped."""
    state = None if run.ids_BS is None else CalibrationState.load(run.stream, run.ids_BS, run.work, run.steps)
    for plan in run.plans[0 if state is None else state.next_layer :]:
        if state is not None or not run.work.has(part_name(plan.index)):
            _quantize_layer(run, plan, state)
        run.steps.finish(plan.index + 1, len(run.plans))
    return [part_name(plan.index) for plan in run.plans]


def _quantize_layer(run: QuantizationRun, plan: LayerPlan, state: CalibrationState | None) -> None:
    """Write the part of a layer, and pass the text through it. Nothing of the layer stays in memory."""
    statistics = {} if state is None else state.statistics(plan.weights, with_hessian=run.recipe.needs_hessian)
    quantized = quantize_layer(run.stream, plan, run.recipe, run.writer, statistics, run.steps.tick)
    run.work.write(part_name(plan.index), quantized.tensors)
    if state is not None:
        state.advance(quantized.layer)


def num_chunks(ids_BS: Tensor | None) -> int:
    """Return the steps that a pass of the calibration text through a layer takes."""
    return 0 if ids_BS is None else -(-len(ids_BS) // SEQUENCES)


def matrix_steps(recipe: Recipe) -> int:
    """Return the steps of the matrices of a layer, about."""
    return 4 * (1 + len(recipe.transforms))


def needed_bytes(stream: LayerStream, ids_BS: Tensor | None) -> int:
    """Return the bytes that the parts, the result and two saved states take at most."""
    checkpoint = stream.plan.checkpoint
    weights = sum(checkpoint.nbytes(source.name) for source in stream.plan.sources)
    return 2 * weights + (0 if ids_BS is None else 2 * 4 * ids_BS.numel() * stream.spec.hidden_size)
