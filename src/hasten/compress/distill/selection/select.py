"""``select_examples``: the few best examples of a file, as they were, with a report."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.model_digest import file_digest
from hasten.checkpoints.new_file import new_file
from hasten.compress.distill.selection.candidates import Candidates
from hasten.compress.distill.selection.diversity import k_center_greedy
from hasten.compress.distill.selection.ifd import NO_HELP, difficulties, with_and_without_input
from hasten.compress.distill.selection.lengths import drop_by_length
from hasten.compress.distill.selection.loss_gap import loss_gaps
from hasten.compress.distill.selection.losses import ExampleLosses, example_losses
from hasten.compress.distill.selection.near_duplicates import drop_near_duplicates
from hasten.compress.distill.selection.options import IFD, SelectOptions
from hasten.compress.distill.selection.pool import Record, read_pool
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Stopped
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import derived_seed
from hasten.training.examples import Example, output_tokens
from hasten.training.load_tokenizer import load_tokenizer
from hasten.training.set_threads import set_threads
from hasten.training.target_model import TargetModel, trainable_spec

TOO_MANY_TOKENS = "examples of more tokens than seq_len"
NO_PREDICTION = "examples without a predicted token"
NOT_CHOSEN = "not chosen"


@dataclass(slots=True)
class Selection:
    """The chosen records, best first, and why the others were dropped."""

    chosen: list[Record]
    scores: list[float]  # of the chosen ones; empty if they were not ranked
    dropped: dict[str, int]  # reason -> records
    num_given: int

    def report(self) -> dict[str, Any]:
        """Return plain data: counts, and the line and score of each chosen record."""
        scores: Sequence[float | None] = self.scores or [None] * len(self.chosen)
        return {
            "given": self.num_given,
            "dropped": self.dropped,
            "chosen": [{"line": record.number, "score": score} for record, score in zip(self.chosen, scores, strict=True)],
        }


def select_examples(
    data: Path,
    out: Path,
    options: SelectOptions,
    *,
    student: str | None = None,
    teacher: str | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop = lambda: False,
) -> Selection | None:
    """Write the best examples of ``data`` to the new file ``out``, best first.

    A report goes to ``out``.json. Records keep all their keys. None, and no file, if ``should_stop`` returned True. Raises
    ``HastenError``.
    """
    _check_models(options, student, teacher)
    if os.path.lexists(out):
        raise InvalidOption("the output file exists", got=str(out), remedy="Give a new file with --out")
    set_threads(options.threads)
    records = read_pool(data)
    folders = {
        name: resolve(model, quiet=progress is None)
        for name, model in (("student", student), ("teacher", teacher))
        if model is not None
    }
    try:
        selection = choose(records, options, progress=progress, should_stop=should_stop, **folders)
    except Stopped:
        return None
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("batch", "threads")}
    origin = {"data_sha256": file_digest(data), "student": student, "teacher": teacher, "options": settings}
    report = json.dumps({**origin, **selection.report()}, indent=1) + "\n"
    _write(out.with_name(out.name + ".json"), report)
    _write(out, "".join(f"{record.line}\n" for record in selection.chosen))
    return selection


def choose(
    records: Sequence[Record],
    options: SelectOptions,
    *,
    student: Path | None = None,
    teacher: Path | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop = lambda: False,
) -> Selection:
    """Return the selection from records in memory.

    Raises ``Stopped``, and ``InvalidOption`` if every record is dropped.
    """
    kept, dropped = drop_by_length(records, options)
    candidates = Candidates(kept, options, should_stop, progress, dropped)
    _check_left(candidates)
    candidates.records, duplicates = drop_near_duplicates(kept, options.max_similarity, candidates.counter(len(kept)))
    candidates.dropped |= duplicates
    if options.needs_student:
        assert student is not None
        _measure(candidates, student, teacher)
    _order(candidates)
    _check_left(candidates)
    scores = [] if candidates.scores_N is None else candidates.scores_N.tolist()
    return Selection(candidates.records, scores, candidates.dropped, len(records))


def _check_models(options: SelectOptions, student: str | None, teacher: str | None) -> None:
    for name, model, needed in (("student", student, options.needs_student), ("teacher", teacher, options.needs_teacher)):
        if needed and model is None:
            raise InvalidOption(f"{options.by} needs a {name}", remedy=f"Add --{name} with a model")
        if model is not None and not needed:
            raise InvalidOption(f"{options.by} reads no {name}", got=model, remedy=f"Leave out --{name}")


def _measure(candidates: Candidates, student: Path, teacher: Path | None) -> None:
    """Set scores and embeddings, and drop the records that have none."""
    options = candidates.options
    folders = [folder for folder in (student, teacher) if folder is not None]
    tokenizers = [_tokenizer(folder) for folder in folders]
    encoded = [[_encode(record, tokenizer) for record in candidates.records] for tokenizer in tokenizers]
    fitting = [i for i, examples in enumerate(zip(*encoded, strict=True)) if all(len(e.ids) <= options.seq_len for e in examples)]
    encoded = [[examples[index] for index in fitting] for examples in encoded]
    candidates.keep(fitting, TOO_MANY_TOKENS)
    _drop_unpredicted(candidates, encoded)
    _check_left(candidates)
    if options.score == IFD:
        begin = tokenizers[0].encode("")
        with_input, alone = (_run(candidates, student, part) for part in with_and_without_input(encoded[0], begin))
        candidates.scores_N, candidates.embeddings_NE = difficulties(with_input, alone), with_input.embeddings_NE
        return
    losses = [_run(candidates, folder, examples) for folder, examples in zip(folders, encoded, strict=True)]
    candidates.embeddings_NE = losses[0].embeddings_NE
    if len(losses) > 1:
        candidates.scores_N = loss_gaps(*losses)


def _check_left(candidates: Candidates) -> None:
    if not candidates.records:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in candidates.dropped.items() if count)
        raise InvalidOption("no example is left to choose", got=reasons, remedy="Give more examples, or wider limits")


def _drop_unpredicted(candidates: Candidates, encoded: list[list[Example]]) -> None:
    """Drop the records of which a model has no input token or predicts no output token."""
    least = 2 if candidates.options.score == IFD else 1  # the first output token may be predicted from nothing
    pairs = zip(*encoded, strict=True)
    kept = [i for i, examples in enumerate(pairs) if all(0 < e.num_input <= len(e.ids) - least for e in examples)]
    candidates.keep(kept, NO_PREDICTION)
    encoded[:] = [[examples[index] for index in kept] for examples in encoded]


def _order(candidates: Candidates) -> None:
    """Put the records in order of rank, and keep the first ``count``."""
    options = candidates.options
    if candidates.scores_N is not None:
        order_N = candidates.scores_N.argsort(descending=True, stable=True)
        if options.score == IFD:
            finite_N = candidates.scores_N[order_N].isfinite()
            candidates.keep(order_N[finite_N].tolist(), NO_HELP)
        else:
            candidates.keep(order_N.tolist(), NOT_CHOSEN)
    if options.is_diverse:
        assert candidates.embeddings_NE is not None
        if options.score is not None:
            candidates.keep(range(min(options.pool * options.count, len(candidates.records))), NOT_CHOSEN)
        count = min(options.count, len(candidates.records))
        chosen = k_center_greedy(candidates.embeddings_NE, count, candidates.counter(count))
        candidates.keep(chosen, NOT_CHOSEN)
    elif options.score is None:
        generator = torch.Generator(device="cpu").manual_seed(derived_seed(options.seed, "selection", 0))
        candidates.keep(torch.randperm(len(candidates.records), generator=generator).tolist(), NOT_CHOSEN)
    candidates.keep(range(min(options.count, len(candidates.records))), NOT_CHOSEN)


def _run(candidates: Candidates, folder: Path, examples: Sequence[Example]) -> ExampleLosses:
    """Load a model and return the losses of examples. The model is dropped then."""
    return example_losses(TargetModel.load(folder), examples, candidates.options.batch, candidates.counter(len(examples)))


def _tokenizer(folder: Path) -> TextTokenizer:
    return load_tokenizer(folder, trainable_spec(folder).vocab_size)


def _encode(record: Record, tokenizer: TextTokenizer) -> Example:
    ids = tokenizer.encode(record.input)
    return Example([*ids, *output_tokens(tokenizer, record.output)], len(ids))


def _write(file: Path, text: str) -> None:
    content = text.encode()
    with new_file(file, len(content)) as stream:
        stream.write(content)
