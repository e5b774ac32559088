"""``cache_teacher``: run a teacher once, and keep its outputs for every distillation to come.

Shape suffixes: R predicted positions of a batch · r some of them · V vocabulary · K top tokens · C classes · P positions of a part.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.model_digest import file_digest, model_digest
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.write_tensors import write_tensors
from hasten.compress.distill.cache_options import CacheOptions
from hasten.compress.new_folder import partial_folder
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Steps, Stopped
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import InvalidOption
from hasten.models.spec import DecoderSpec
from hasten.ops.cpu.memory import format_bytes
from hasten.training.corpus import NumberedSource
from hasten.training.distill.cache_facts import FILE, SEQUENCES, CacheFacts, CachePart, hidden_name
from hasten.training.distill.coarse_log_probs import top_classes
from hasten.training.distill.sequences import read_sequences, sequences_digest, tokenizer_digest
from hasten.training.lm_head_loss import BLOCK_ELEMENTS
from hasten.training.load_tokenizer import load_tokenizer
from hasten.training.predicted_rows import predicted_rows
from hasten.training.resume import write_errors
from hasten.training.set_threads import set_threads
from hasten.training.target_model import TargetModel, check_seq_len, trainable_spec

PART_BYTES = 1 << 28  # of a file, and of the memory that holds it before it is written; one sequence may exceed it
_DTYPES = {"U16": torch.uint16, "I32": torch.int32}


@dataclass(frozen=True, slots=True)
class CacheReport:
    folder: Path
    facts: CacheFacts
    num_positions: int
    num_tokens: int  # of all sequences

    def describe(self) -> str:
        """Return one line: sequences, positions and bytes."""
        position_bytes = self.facts.position_bytes
        total = self.num_positions * position_bytes
        per_token = total / self.num_tokens
        return (
            f"{self.facts.parts[-1].stop:,} {self.facts.kind}, {self.num_positions:,} predicted positions of {self.num_tokens:,} "
            f"tokens: {format_bytes(total)}, {position_bytes:,} bytes per position and {per_token:,.0f} per token"
        )


def cache_teacher(
    model: str,
    data: Path,
    out: Path,
    options: CacheOptions,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    on_log: Callable[[str], None] = lambda message: None,
    should_stop: ShouldStop = lambda: False,
) -> CacheReport | None:
    """Write a teacher's outputs for the sequences of ``data`` to the new folder ``out``.

    ``TeacherCache`` reads it. None if ``should_stop`` returned True; ``resume`` continues such a run, or a killed one. ``on_log``
    gets the needed space before anything runs. Raises ``HastenError``, and ``CapacityError`` if the disk is too small.
    """
    set_threads(options.threads)
    folder = resolve(model, quiet=progress is None)
    spec = trainable_spec(folder)
    _check_limits(options, spec)
    tokenizer = load_tokenizer(folder, spec.vocab_size)
    kind, source = read_sequences(data, tokenizer, options.seq_len, options.validation_fraction)
    facts = CacheFacts(
        teacher=model,
        teacher_sha256=model_digest(Checkpoint.open(folder)).weights,
        tokenizer_sha256=tokenizer_digest(tokenizer),
        data_sha256=file_digest(data),
        sequences_sha256=sequences_digest(source),
        kind=kind,
        seq_len=options.seq_len,
        validation_fraction=options.validation_fraction,
        top_k=min(options.top_k, spec.vocab_size),
        vocab_size=spec.vocab_size,
        hidden_layers=options.hidden_layers,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
    )
    counts = source.predicted_counts_N
    facts = dataclasses.replace(facts, parts=tuple(_parts(counts, max(1, PART_BYTES // facts.position_bytes))))
    work = WorkFolder.open(out, _settings(facts), resume=resume)
    num_tokens = int(counts.sum()) + _num_unpredicted(source)
    report = CacheReport(work.out, facts, int(counts.sum()), num_tokens)
    on_log(report.describe())
    work.check_space(report.num_positions * facts.position_bytes + 4 * num_tokens)
    steps = Steps(report.num_positions, progress, should_stop)
    try:
        _write_parts(folder, source, facts, work, options.batch, steps)
    except Stopped:
        return None
    _publish(work, source, facts)
    return report


def _check_limits(options: CacheOptions, spec: DecoderSpec) -> None:
    check_seq_len(options.seq_len, spec)
    wrong = [layer + 1 for layer in options.hidden_layers if layer >= spec.num_layers]
    if wrong:
        raise InvalidOption("the teacher has no such layers", got=wrong, allowed=f"1 to {spec.num_layers}")


def _settings(facts: CacheFacts) -> Mapping[str, Any]:
    settings = dataclasses.asdict(facts)
    return {name: value for name, value in settings.items() if name != "teacher"}


def _num_unpredicted(source: NumberedSource) -> int:
    """Return how many tokens are not predicted: inputs of examples, or first tokens of windows."""
    tensors = source.tensors()
    return int(tensors["num_input_N"].clamp(min=1).sum()) if "num_input_N" in tensors else len(source.predicted_counts_N)


def _parts(counts_N: Tensor, max_positions: int) -> Iterator[CachePart]:
    """Yield the parts, as many sequences each as ``max_positions`` allow and at least one."""
    ends = [0, *counts_N.cumsum(0).tolist()]
    first = 0
    while first < len(counts_N):
        stop = max(first + 1, bisect_right(ends, ends[first] + max_positions) - 1)
        yield CachePart(first, stop, ends[stop] - ends[first])
        first = stop


def _write_parts(folder: Path, source: NumberedSource, facts: CacheFacts, work: WorkFolder, batch: int, steps: Steps) -> None:
    """Write the parts that are missing. Raises ``Stopped``."""
    steps.advance_to(sum(part.positions for part in facts.parts if work.has(part.name)))
    missing = [part for part in facts.parts if not work.has(part.name)]
    teacher = TargetModel.load(folder) if missing else None
    for part in missing:
        assert teacher is not None
        pieces: list[dict[str, Tensor]] = []
        for first in range(part.first, part.stop, batch):
            pieces.append(_outputs(teacher, source, range(first, min(first + batch, part.stop)), facts))
            steps.advance_to(steps.done + len(pieces[-1]["token_ids"]))
        work.write(part.name, {name: torch.cat([piece.pop(name) for piece in pieces]) for name in tuple(pieces[0])})


def _outputs(teacher: TargetModel, source: NumberedSource, indices: range, facts: CacheFacts) -> dict[str, Tensor]:
    """Return the tensors of a part for these sequences."""
    batch = source.numbered(indices)
    rows_R = predicted_rows(batch).rows_R
    states = teacher.hidden_states(batch.ids_BS, facts.hidden_layers)
    normed_RE = teacher.normed(states)[rows_R]
    block = max(1, BLOCK_ELEMENTS // facts.vocab_size)
    classes = [top_classes(block_rE @ teacher.lm_head_VE.T, facts.top_k) for block_rE in torch.split(normed_RE, block)]
    ids_RK, log_probs_RC = (torch.cat(tensors) for tensors in zip(*classes, strict=True))
    # -inf would make products with probability 0 undefined.
    log_probs_RC = log_probs_RC.clamp(min=torch.finfo(torch.float16).min)
    hidden = {hidden_name(layer): states.aux_hidden_states[layer][rows_R].bfloat16() for layer in facts.hidden_layers}
    return {"token_ids": ids_RK.to(_DTYPES[facts.ids_dtype]), "log_probs": log_probs_RC.half(), **hidden}


def _publish(work: WorkFolder, source: NumberedSource, facts: CacheFacts) -> None:
    """Put the parts, the sequences and the facts together, and give the folder its name."""
    result = work.new_result()
    with write_errors(partial_folder(work.out)):
        for part in facts.parts:
            _link(work.file(part.name), result / f"{part.name}.safetensors")
        write_tensors({name: tensor.contiguous() for name, tensor in source.tensors().items()}, result / SEQUENCES)
        facts.write(result)
        for name in (SEQUENCES, FILE):
            _sync(result / name)
    work.publish()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        _sync(target)


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
