"""``quantize_mixed``: bits for each layer, chosen by what they cost in KL divergence.

Every layer is quantised with each of its bits, calibrated on the original model. The candidates stay on disk while the search
measures assignments, and the chosen ones become the result: what was measured is what is written.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.model_card import ModelCard
from hasten.compress.quantize.calibration_state import CalibrationState
from hasten.compress.quantize.card import build_card
from hasten.compress.quantize.mixed.assignment import Assignment, ModelBytes
from hasten.compress.quantize.mixed.kl_estimate import KlEstimate
from hasten.compress.quantize.mixed.kl_evaluator import UNQUANTIZED, KlEvaluator
from hasten.compress.quantize.mixed.search import search_least_bytes, search_least_kl
from hasten.compress.quantize.mixed.validation_text import split_texts
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.plan import LayerPlan, check_format, matrix_shapes, plan_layers
from hasten.compress.quantize.quantization_run import Progress, QuantizationRun, ShouldStop, Steps, Stopped, part_name
from hasten.compress.quantize.quantize import (
    assemble,
    matrix_steps,
    needed_bytes,
    num_chunks,
    open_source,
    read_calibration,
    run_settings,
)
from hasten.compress.quantize.quantize_layer import other_tensors, quantize_layer
from hasten.compress.quantize.recipe import Recipe, build_recipe
from hasten.compress.quantize.stored_layer import layer_bytes, load_stored_layer
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import InvalidOption
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import LayerStream
from hasten.quality.documents import HELD_OUT, read_texts
from hasten.quality.window import TokenText
from hasten.text.tokenizer import TextTokenizer
from hasten.training.resume import write_errors
from hasten.training.set_threads import set_threads

BITS = (4, 8)  # of quantised layers; others stay as they are
ROUNDING = "gptq"
VALIDATION_TOKENS = 8_192  # half to search on, half to confirm on
VALIDATION_WINDOW = 128  # tokens: each of the 45 texts that ship gets one or two windows
EVALUATIONS = "evaluations.json"  # in the work folder: what a killed run has measured

Evaluate = Callable[[tuple[int, ...]], KlEstimate]


def quantize_mixed(
    model: str,
    out: Path,
    options: QuantizeOptions,
    *,
    method_options: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
    validation: Path | None = None,
    num_validation_tokens: int = VALIDATION_TOKENS,
    resume: bool = False,
    progress: Progress | None = None,
    should_stop: ShouldStop = lambda: False,
) -> CompressedModel | None:
    """Write the smallest model within ``options.max_kl``, or the best one within ``options.target_bytes``.

    ``validation`` is the text on which the KL divergence is measured; None: the held-out text that ships with hasten. The other
    arguments and errors are those of ``quantize``.
    """
    started = time.monotonic()
    set_threads(options.threads)
    base, recipes = _build_recipes(options, method_options)
    writer = find_writer(options.format)
    stream = open_source(model, quiet=progress is None)
    plans = plan_layers(stream, options.ignore)
    for recipe in recipes.values():
        check_format(stream, plans, recipe, writer)
    ids_BS = read_calibration(stream, calibration, options)
    texts = _read_validation(stream.folder, stream.spec.vocab_size, validation)
    _check_target(stream, plans, options.max_bytes)
    settings = run_settings(stream, options, method_options, ids_BS)
    settings |= {"validation": str(validation), "validation_tokens": num_validation_tokens}
    for limit in ("max_kl", "target_bytes"):  # a resumed run may have another one
        del settings[limit]
    work = WorkFolder.open(out, settings, resume=resume)
    work.check_space(2 * needed_bytes(stream, ids_BS))
    steps = Steps(2 * len(plans) * (2 * num_chunks(ids_BS) + len(BITS) * matrix_steps(base)), progress, should_stop)
    run = MixedRun(QuantizationRun(stream, plans, base, writer, ids_BS, work, steps), recipes, ids_BS)
    try:
        run.quantize_layers()
        assignment = run.search(options, texts, num_validation_tokens)
        card = build_card(
            model,
            stream.folder,
            work.out,
            options,
            base,
            method_options=method_options,
            calibration=calibration,
            ids_BS=ids_BS,
            results=_results(options, assignment),
        )
        run.assemble(assignment, card)
    except Stopped:
        return None
    work.publish()
    return CompressedModel(folder=work.out, source=stream.folder, card=card, seconds=time.monotonic() - started)


def _build_recipes(options: QuantizeOptions, method_options: Mapping[str, Any] | None) -> tuple[Recipe, dict[int, Recipe]]:
    """Return the recipe without its bits, and those of each number of bits."""
    base = build_recipe(dataclasses.replace(options, method=ROUNDING, max_kl=None, target_bytes=None), method_options)
    return base, {bits: base.with_bits(bits) for bits in BITS}


@dataclass(frozen=True, slots=True)
class MixedRun:
    run: QuantizationRun
    recipes: Mapping[int, Recipe]  # by bits
    ids_BS: Tensor  # calibration text

    def quantize_layers(self) -> None:
        """Write every layer with each of its bits, and as it is. Raises ``Stopped``."""
        run = self.run
        state = CalibrationState.load(run.stream, self.ids_BS, run.work, run.steps)
        for plan in run.plans[state.next_layer :]:
            self._write_candidates(plan, state)
            run.steps.finish(plan.index + 1, len(run.plans), share=2)

    def _write_candidates(self, plan: LayerPlan, state: CalibrationState) -> None:
        run = self.run
        statistics = state.statistics(plan.weights, with_hessian=True)
        for bits, recipe in self.recipes.items():
            quantized = quantize_layer(run.stream, plan, recipe, run.writer, statistics, run.steps.tick)
            run.work.write(part_name(plan.index, bits), quantized.tensors)
        layer = run.stream.layer(plan.index)
        matrices = {
            source.name: run.stream.plan.checkpoint.read(source.name) for linear in plan.quantized for source in linear.sources
        }
        run.work.write(part_name(plan.index, UNQUANTIZED), matrices | other_tensors(run.stream, layer, plan, changed=False))
        state.advance(layer)

    def search(self, options: QuantizeOptions, texts: list[TokenText], num_tokens: int) -> Assignment:
        """Return the best assignment found. Raises ``Stopped`` and ``InvalidOption``."""
        run, length = self.run, min(VALIDATION_WINDOW, self.run.stream.spec.max_positions)
        searched, confirmed = split_texts(texts, length, num_tokens)
        evaluate = self._remembered("search", lambda: KlEvaluator(run.stream, searched, self._layer))
        confirm = self._remembered("confirm", lambda: KlEvaluator(run.stream, confirmed, self._layer))
        half = run.steps.total // 2

        def report(done: int, total: int) -> None:
            run.steps.advance_to(half + done * half // max(1, total))

        sizes = self._sizes()
        if options.max_kl is not None:
            return search_least_bytes(sizes, evaluate, confirm, options.max_kl, report)
        assert options.max_bytes is not None
        return search_least_kl(sizes, evaluate, confirm, options.max_bytes, report)

    def assemble(self, assignment: Assignment, card: ModelCard) -> None:
        """Write the files of the chosen layers."""
        chosen = {index: self.recipes[bits] for index, bits in enumerate(assignment.bits) if bits != UNQUANTIZED}
        assemble(self.run, [part_name(index, bits) for index, bits in enumerate(assignment.bits)], chosen, card)

    def _layer(self, index: int, bits: int) -> DecoderLayer:
        run = self.run
        file = run.work.file(part_name(index, bits))
        return load_stored_layer(run.stream, run.plans[index], file, self.recipes[bits], run.writer)

    def _sizes(self) -> ModelBytes:
        checkpoint = self.run.stream.plan.checkpoint
        candidates = (*self.recipes, UNQUANTIZED)
        return ModelBytes(
            layers=[
                {bits: layer_bytes(self.run.work.file(part_name(plan.index, bits))) for bits in candidates}
                for plan in self.run.plans
            ],
            others=sum(checkpoint.nbytes(source.name) for source in self.run.stream.other_sources()),
        )

    def _remembered(self, name: str, build: Callable[[], KlEvaluator]) -> Evaluate:
        """Return an evaluation that a resumed run does not repeat."""
        file = self.run.work.resume.folder / f"{name}-{EVALUATIONS}"
        known: dict[str, Any] = read_json(file) if file.is_file() else {}
        evaluator: KlEvaluator | None = None

        def evaluate(bits: tuple[int, ...]) -> KlEstimate:
            nonlocal evaluator
            key = " ".join(map(str, bits))
            if key not in known:
                evaluator = evaluator or build()
                known[key] = dataclasses.asdict(evaluator.evaluate(bits))
                with write_errors(file.parent):
                    partial = file.with_suffix(".partial")
                    partial.write_text(json.dumps(known), encoding="utf-8")
                    partial.replace(file)
            return KlEstimate(**known[key])

        return evaluate


def _check_target(stream: LayerStream, plans: Sequence[LayerPlan], target: int | None) -> None:
    """Raise ``InvalidOption`` for a target below the codes of the fewest bits, before any work."""
    if target is None:
        return
    checkpoint, shapes = stream.plan.checkpoint, matrix_shapes(stream, plans)
    others = sum(
        checkpoint.nbytes(source.name) for source in stream.plan.sources if source.name.removesuffix(".weight") not in shapes
    )
    least = others + sum(outputs * inputs for outputs, inputs in shapes.values()) * min(BITS) // 8
    if target < least:
        raise InvalidOption(
            f"target_bytes is less than the model takes with {min(BITS)} bits in every layer",
            got=target,
            allowed=f"from {least}, and the scales",
        )


def _read_validation(folder: Path, vocab_size: int, file: Path | None) -> list[TokenText]:
    tokenizer = TextTokenizer.load(folder, vocab_size)
    if tokenizer is None:
        raise InvalidOption("this checkpoint has no tokenizer, so no text can be scored", remedy="Copy one into its folder")
    return [TokenText(tuple(tokenizer.encode(text))) for text in read_texts(file or HELD_OUT)]


def _results(options: QuantizeOptions, assignment: Assignment) -> dict[str, str]:
    """Return what the search found, for the model card."""
    limit = f"KL at most {options.max_kl}" if options.max_kl is not None else f"at most {options.max_bytes:,} bytes"
    alone = [
        f"{index}: " + ", ".join(f"{choice.bits} bits {choice.kl.mean:.5f}" for choice in layer if choice.bits != UNQUANTIZED)
        for index, layer in enumerate(assignment.layers)
    ]
    return {
        "limit": limit,
        "bits of each layer": " ".join(map(str, assignment.bits)),
        "KL on text that the search did not use": f"{assignment.kl:.5f}, that of other text at most {assignment.kl_upper:.5f}",
        "KL of each layer alone": "; ".join(alone),
    }
