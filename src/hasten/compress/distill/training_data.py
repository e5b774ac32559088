"""``TrainingData``: the distillation set, text outside it and text to replay, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.compress.distill.distill_run import DistillRun
from hasten.compress.distill.forgetting import outside_sequences
from hasten.compress.distill.replay import read_replay
from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.quality.documents import HELD_OUT
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import BatchSource, Corpus
from hasten.training.distill.sequences import has_examples
from hasten.training.documents import PROMPT_DIVISOR
from hasten.training.examples import Examples, read_examples
from hasten.training.read_corpus import read_corpus
from hasten.training.resume import damaged_state

MAX_UNKNOWN = 0.01  # share of unknown tokens up to which a tokenizer fits the shipped text
_SET, _OUTSIDE, _REPLAY = "corpus", "outside", "replay"


@dataclass(frozen=True, slots=True)
class TrainingData:
    inside: BatchSource
    outside_BS: Tensor | None
    replay: Corpus | None


def read_data(run: DistillRun) -> TrainingData | None:
    """Return the data, of a resumed run from its work folder.

    None if ``should_stop`` returned True. Raises ``HastenError``.
    """
    inside = run.cached.cache.source if run.cached is not None else _saved_set(run) or _read_set(run)
    if inside is None:
        return None
    outside_BS = _read_outside(run)
    return TrainingData(inside, outside_BS, _read_replay(run))


def prompts_of(data: BatchSource, seq_len: int) -> tuple[list[list[int]], int]:
    """Return prompts for a student to answer, and the most tokens of an answer.

    They are the inputs of the training examples, or beginnings of the training sequences.
    """
    if isinstance(data, Examples):
        count = int(data.counts[0])
        starts = [0, *data.ends_N[: count - 1].tolist()]
        sizes = data.num_input_N[:count].tolist()
        longest = max(end - start - size for start, end, size in zip(starts, data.ends_N[:count].tolist(), sizes, strict=True))
        return [data.ids_T[start : start + size].tolist() for start, size in zip(starts, sizes, strict=True)], longest
    assert isinstance(data, Corpus), data  # a cached teacher answers no prompts
    length = max(1, seq_len // PROMPT_DIVISOR)
    starts_N = range(0, len(data.train_N) - length + 1, seq_len)
    return [data.train_N[start : start + length].tolist() for start in starts_N], seq_len - length


def _saved_set(run: DistillRun) -> Corpus | Examples | None:
    saved = run.work.resume.read(_SET)
    if saved is None:
        return None
    try:
        return Corpus(**saved) if "train_N" in saved else Examples(**saved)
    except TypeError as error:
        raise damaged_state(run.work.resume.folder, str(error)) from None


def _read_set(run: DistillRun) -> Corpus | Examples | None:
    data, vocabulary, options = run.texts.data, run.vocabulary, run.options
    found: Corpus | Examples | None
    if has_examples(data):
        if options.self_distill is not None:
            raise InvalidOption(
                "the teacher continues texts, and the data has examples",
                got=f"self_distill={options.self_distill}",
                remedy="Leave out self_distill, or let hasten data generate answer the inputs",
            )
        found = Examples.split(read_examples(data, vocabulary.student, options.seq_len), options.validation_fraction)
    else:
        writes_other_tokens = options.self_distill is not None and not vocabulary.is_shared
        if writes_other_tokens and vocabulary.teacher is None:
            raise InvalidOption("the teacher has no tokenizer to read the data with", got=run.folder)
        found = read_corpus(
            run.teacher,
            data,
            (vocabulary.teacher if writes_other_tokens else None) or vocabulary.student,
            options=options,
            resume=run.work.resume,
            callback=run.callback,
            should_stop=run.should_stop,
            reader=vocabulary.student if writes_other_tokens else None,
        )
    if found is not None:
        run.work.write(_SET, found.tensors())
    return found


def _read_outside(run: DistillRun) -> Tensor | None:
    """Return sequences outside the set. None if the shipped text does not suit the student."""
    saved = run.work.resume.read(_OUTSIDE)
    if saved is not None:
        return saved.get("ids_BS")
    file, tokenizer, seq_len = run.texts.outside, run.vocabulary.student, run.options.seq_len
    try:
        ids_BS = outside_sequences(file or HELD_OUT, tokenizer, seq_len)
        if file is None and _unknown_share(ids_BS, tokenizer) > MAX_UNKNOWN:
            raise InvalidRequest("the vocabulary lacks its words")
    except (InvalidOption, InvalidRequest) as error:
        if file is not None:
            raise
        run.callback.on_log(f"forgetting is not measured, because the shipped text does not suit the student: {error}")
        run.work.write(_OUTSIDE, {})
        return None
    run.work.write(_OUTSIDE, {"ids_BS": ids_BS})
    return ids_BS


def _unknown_share(ids_BS: Tensor, tokenizer: TextTokenizer) -> float:
    unknown = tokenizer.special_tokens.get("unk_token")
    token_id = None if unknown is None else tokenizer.special_token_ids.get(unknown)
    return 0.0 if token_id is None else float((ids_BS == token_id).to(torch.float32).mean())


def _read_replay(run: DistillRun) -> Corpus | None:
    if run.texts.replay is None:
        return None
    saved = run.work.resume.read(_REPLAY)
    if saved is not None:
        return Corpus(**saved)
    replay = read_replay(run.texts.replay, run.vocabulary.student, run.options.seq_len)
    run.work.write(_REPLAY, replay.tensors())
    return replay
