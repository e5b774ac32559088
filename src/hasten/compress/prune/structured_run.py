"""``StructuredRun``: removal of heads, neurons, channels and layers, in rounds.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.compress.prune.card import round_lines, size_lines
from hasten.compress.prune.gradual import ROUND_STEPS, GradualRun, Report, train_options
from hasten.compress.prune.latency import measure_latency
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.pruned_config import loading_notes
from hasten.compress.prune.rounds import MOST_REMOVED, removed_shares, round_shapes, rounds_needed
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.target import Target, find_target
from hasten.compress.prune.target_shape import size_notes, unchanged
from hasten.compress.quantize.card import SHIPPED_TEXT
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Steps, Stopped
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import InvalidOption
from hasten.models.layer_stream import LayerStream
from hasten.quality.documents import CALIBRATION
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Corpus
from hasten.training.documents import encode_documents
from hasten.training.resume import damaged_state
from hasten.training.trainable_model import TrainableModel

TARGET, CORPUS = "target", "corpus"  # parts of the work folder
# Bytes on the disk per parameter of the unpruned model: the weights of a round twice and the result, and of a training two states
# with the weights, the best ones and two moments.
WRITING_BYTES, TRAINING_BYTES = 12, 44
VALIDATION_FRACTION = 0.05  # of the text that the model recovers on


@dataclass(frozen=True, slots=True)
class PrunedModel:
    model: TrainableModel
    dtype: torch.dtype  # in which it is to be written
    results: dict[str, Any]  # lines of the recipe
    notes: tuple[str, ...]  # of the card


@dataclass(frozen=True, slots=True)
class StructuredRun:
    stream: LayerStream  # of the unpruned model
    options: PruneOptions
    ids_BS: Tensor | None  # calibration text; None: nothing reads it
    text: Path | None  # that the model recovers on; None: the calibration text that ships with hasten
    tokenizer: TextTokenizer | None
    work: WorkFolder
    report: Report

    def complete(self, progress: Progress | None, should_stop: ShouldStop) -> PrunedModel:
        """Prune, and recover where the options say so. Raises ``Stopped`` and ``HastenError``."""
        options, spec = self.options, self.stream.spec
        if options.recovers:
            for number in range(1, options.steps + 1):
                train_options(options, number)  # wrong ones are an error before the work
        self.work.check_space((TRAINING_BYTES if options.recovers else WRITING_BYTES) * num_parameters(spec))
        corpus = self._corpus() if options.recovers else None
        target = self._target(should_stop)
        if corpus is not None and not self.work.has(CORPUS):
            self.work.write(CORPUS, corpus.tensors())
        shapes = round_shapes(spec, options.parts, target.shape, options.steps)
        self._describe(target, shapes)
        ids_BS = torch.empty(0, options.seq_len, dtype=torch.int64, device="cpu") if self.ids_BS is None else self.ids_BS
        steps = Steps(ROUND_STEPS * len(shapes), progress, should_stop)
        run = GradualRun(self.stream.folder, options, shapes, ids_BS, corpus, self.work, steps, self.report)
        model, rounds = run.complete()
        notes = loading_notes(model.spec)
        for note in notes:
            self.report(note)
        results: dict[str, Any] = {**size_lines(Shape.of(spec), target.shape)}
        if corpus is not None:
            results |= round_lines(rounds, SHIPPED_TEXT if self.text is None else self.text.name)
        return PrunedModel(model, self.stream.plan.dtype, results, notes)

    def _corpus(self) -> Corpus:
        """Return what recovery trains on, in a resumed run as it was."""
        saved = self.work.resume.read(CORPUS)
        if saved is None:
            assert self.tokenizer is not None, "read_calibration refuses a model without one"
            documents = encode_documents(self.text or CALIBRATION, self.tokenizer)
            corpus = Corpus.split(documents, self.options.seq_len, VALIDATION_FRACTION, self.tokenizer.eos_token_id)
        else:
            try:
                corpus = Corpus(**saved)
            except TypeError as error:
                raise damaged_state(self.work.resume.folder, f"{CORPUS}: {error}") from None
        name = f"{SHIPPED_TEXT}, which is small" if self.text is None else str(self.text)
        self.report(f"recovery on {name}: {corpus.summary}")
        return corpus

    def _target(self, should_stop: ShouldStop) -> Target:
        """Return the sizes after pruning, in a resumed run as they were. Raises ``Stopped``."""
        saved = self.work.resume.read(TARGET)
        if saved is not None:
            return _read_target(saved, self.work)
        config, dtype = self.stream.plan.checkpoint.config, self.stream.plan.dtype
        folder = self.work.resume.folder / "latency"

        def latency(shape: Shape) -> float:
            if should_stop():
                raise Stopped
            measured = measure_latency(config, self.stream.spec, shape, dtype, folder, self.options.threads)
            parameters = num_parameters(shape.apply(self.stream.spec))
            self.report(f"{measured:.3f} ms per token with {parameters:,} parameters and random weights")
            return measured

        if self.options.target_latency is not None:
            self.work.resume.write("measuring", {})  # the settings come before the folder of a measured model
        try:
            target = find_target(self.stream.spec, self.options, latency)
        except InvalidOption:
            self.work.discard()  # another target is another run
            raise
        sizes = torch.tensor(dataclasses.astuple(target.shape), dtype=torch.int64, device="cpu")
        ratio = torch.tensor([target.ratio], dtype=torch.float64, device="cpu")
        self.work.write(TARGET, {"sizes": sizes, "ratio": ratio})
        return target

    def _describe(self, target: Target, shapes: list[Shape]) -> None:
        """Report what is removed, and a warning where a round removes much."""
        spec, options = self.stream.spec, self.options
        for line in size_notes(spec, target.shape, options.parts, target.ratio):
            self.report(line)
        if options.ratio and (same := unchanged(spec, target.shape, options.parts)):
            self.report(f"warning: a ratio of {options.ratio:g} is too small to change the {' and the '.join(same)}")
        before, after = num_parameters(spec), num_parameters(target.shape.apply(spec))
        self.report(f"parameters: {before:,} before, {after:,} after ({after / before:.1%})")
        most = max(removed_shares(spec, shapes))
        if options.recovers and most > MOST_REMOVED:
            needed = rounds_needed(spec, target.shape)
            advice = f"; --steps {needed} removes less at a time" if needed > options.steps else ", as no size lies between"
            self.report(
                f"warning: a round removes {most:.1%} of the parameters, and at most {MOST_REMOVED:.0%} recovers best{advice}"
            )


def _read_target(saved: dict[str, Tensor], work: WorkFolder) -> Target:
    """Return the target of a part. Raises ``CheckpointError`` for a damaged one."""
    sizes, ratio = saved.get("sizes"), saved.get("ratio")
    names = [field.name for field in dataclasses.fields(Shape)]
    if sizes is None or ratio is None or sizes.shape != (len(names),) or ratio.numel() != 1 or not bool((sizes > 0).all()):
        raise damaged_state(work.resume.folder, f"{TARGET} is not that of a run")
    return Target(Shape(**dict(zip(names, map(int, sizes.tolist()), strict=True))), float(ratio))
