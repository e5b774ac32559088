"""``run_pruning``: from a checkpoint to one with fewer parts, or with weights of zero.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.compressed_model import CompressedModel
from hasten.compress.merge_parts import merge_parts
from hasten.compress.model_card import ModelCard, write_model_card
from hasten.compress.prune.card import ZEROS, build_card
from hasten.compress.prune.gradual import Report
from hasten.compress.prune.masks.mask_run import MaskRun, check_pattern, mask_method
from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.structured_run import StructuredRun
from hasten.compress.quantize.calibration import calibration_digest, calibration_ids
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Steps, Stopped
from hasten.compress.quantize.quantize import needed_bytes
from hasten.compress.source_digest import source_digest
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.models.layer_stream import LayerStream
from hasten.quality.documents import read_texts
from hasten.text.tokenizer import TextTokenizer
from hasten.training.resume import write_errors
from hasten.training.set_threads import set_threads


def run_pruning(
    model: str,
    out: Path,
    options: PruneOptions,
    *,
    data: Path | None = None,
    calibration: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    report: Report = lambda line: None,
    should_stop: ShouldStop = lambda: False,
) -> CompressedModel | None:
    """Write a pruned copy of a model to the new folder ``out``, which appears when it is complete.

    ``calibration`` is the text on which importance is measured; None: the text that ships with hasten. ``data`` is the text on
    which the model recovers; None: the calibration text. ``resume``: continue a run that was stopped or killed; the result has the
    same bytes with the same number of threads. ``report`` takes lines about what is removed and won back. None if ``should_stop``,
    asked after each step, returned True; the run can then be resumed.

    Raises ``InvalidOption`` for options that the model does not allow, ``UnsupportedModel`` for quantised weights,
    ``CheckpointError`` if a method fails and ``CapacityError`` for a full disk. ``out`` does not exist then.
    """
    started = time.monotonic()
    set_threads(options.threads)
    stream = _open_source(model, quiet=progress is None)
    if data is not None and not options.recovers:
        raise InvalidOption("data has no effect without recovery", got=str(data), remedy="Give recover_minutes or recover_steps")
    request = _Request(model, stream, out, options, data, calibration, resume)
    prune = _prune_structured if options.is_structured else _prune_weights
    try:
        finished = prune(request, progress, report, should_stop)
    except Stopped:
        return None
    return CompressedModel(folder=finished.folder, source=stream.folder, card=finished.card, seconds=time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Request:
    model: str
    stream: LayerStream
    out: Path
    options: PruneOptions
    data: Path | None
    calibration: Path | None
    resume: bool

    def tokenizer(self) -> TextTokenizer | None:
        return TextTokenizer.load(self.stream.folder, self.stream.spec.vocab_size)

    def read_calibration(self) -> Tensor:
        """Return the calibration windows, int64 [B, S]. Raises ``InvalidOption``."""
        return calibration_ids(
            self.calibration,
            self.tokenizer(),
            samples=self.options.samples,
            seq_len=self.options.seq_len,
            seed=self.options.seed,
            max_positions=self.stream.spec.max_positions,
        )

    def open_work(self, ids_BS: Tensor | None, data_digest: str | None = None) -> WorkFolder:
        """Return the work folder of a run with everything that its result depends on."""
        settings = dataclasses.asdict(self.options)
        del settings["threads"]
        settings |= {
            "model_sha256": source_digest(self.stream.plan.checkpoint),
            "calibration": None if ids_BS is None else calibration_digest(ids_BS),
            "data_sha256": data_digest,
        }
        return WorkFolder.open(self.out, settings, resume=self.resume)

    def card(self, out: Path, ids_BS: Tensor | None, results: dict[str, Any], notes: tuple[str, ...] = ()) -> ModelCard:
        source, calibration = self.stream.folder, self.calibration
        return build_card(
            self.model, source, out, self.options, calibration=calibration, ids_BS=ids_BS, results=results, notes=notes
        )


@dataclass(frozen=True, slots=True)
class _Finished:
    folder: Path
    card: ModelCard


def _open_source(model: str, *, quiet: bool) -> LayerStream:
    """Return the layers of a model in floating point. Raises ``UnsupportedModel`` for a quantised one."""
    folder = resolve(model, quiet=quiet)
    checkpoint = Checkpoint.open(folder)
    matrix = next(iter(checkpoint.matrices.values()), None)
    if matrix is not None or checkpoint.gguf is not None:
        raise UnsupportedModel(
            f"the weights of {folder} are quantised, and pruning needs them in floating point"
            if matrix
            else f"{folder} is not a folder of safetensors files",
            got=matrix.spec.describe() if matrix else "a GGUF file",
            allowed="a folder with weights in float32, bfloat16 or float16",
            remedy="Prune the original model",
        )
    return LayerStream.open(checkpoint)


def _prune_weights(request: _Request, progress: Progress | None, report: Report, should_stop: ShouldStop) -> _Finished:
    """Make weights zero, and write the checkpoint. Raises ``Stopped``."""
    options, stream, method = request.options, request.stream, mask_method(request.options.method)
    if request.calibration is not None and not method.needs_statistics:
        remedy = "Omit it, or choose wanda or sparsegpt"
        raise InvalidOption(f"a calibration text has no effect with the method {options.method}", remedy=remedy)
    assert options.ratio is not None
    pattern = Pattern(options.ratio, is_2_4=options.pattern == "2:4")
    check_pattern(stream, pattern)
    ids_BS = request.read_calibration() if method.needs_statistics else None
    work = request.open_work(ids_BS)
    work.check_space(needed_bytes(stream, ids_BS))
    report(ZEROS)
    run = MaskRun(stream, method, pattern, ids_BS, work, Steps(MaskRun.num_steps(stream, ids_BS), progress, should_stop))
    parts = run.prune_layers()
    zeros, total = run.count_zeros(parts)
    results = {"zeros": f"{zeros:,} of {total:,} weights of the layers' matrices ({zeros / total:.1%})"}
    report(f"zeros: {results['zeros']}")
    card = request.card(work.out, ids_BS, results, (ZEROS,))
    folder = merge_parts(stream, work, parts)
    with write_errors(folder):
        (folder / "config.json").write_text(json.dumps(stream.plan.checkpoint.config, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder, card)
    work.publish()
    return _Finished(work.out, card)


def _prune_structured(request: _Request, progress: Progress | None, report: Report, should_stop: ShouldStop) -> _Finished:
    """Remove parts, and write the checkpoint. Raises ``Stopped``."""
    options, stream = request.options, request.stream
    reads_text = options.reads_text or options.recovers
    if request.calibration is not None and not reads_text:
        raise InvalidOption(f"a calibration text has no effect with the method {options.method}", remedy="Omit it")
    ids_BS = request.read_calibration() if reads_text else None
    text = request.data or request.calibration
    work = request.open_work(ids_BS, _digest(text) if options.recovers and text is not None else None)
    run = StructuredRun(stream, options, ids_BS, text, request.tokenizer(), work, report)
    finished = run.complete(progress, should_stop)
    card = request.card(work.out, ids_BS if options.reads_text else None, finished.results, finished.notes)
    folder = work.new_result()
    with write_errors(folder):
        finished.model.write(folder, stream.folder, finished.dtype)
    write_model_card(folder, card)
    work.publish()
    return _Finished(work.out, card)


def _digest(file: Path) -> str:
    """Return the SHA-256 of a text file. Raises ``InvalidOption``."""
    return hashlib.sha256(json.dumps(read_texts(file)).encode()).hexdigest()
