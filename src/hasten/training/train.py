"""``train``: a whole training, from a model's name and a file of text to a finished checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.base import Finisher, Recipe
from hasten.training.callback import Silent, TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.documents import encode, generate
from hasten.training.draft_score import DraftScore
from hasten.training.loop import TrainingLoop, TrainingState
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder, writing
from hasten.training.target_model import TargetModel, trainable_spec

REPORT = "training.json"
_SAMPLE = 1 << 20  # bytes at either end of a weight file that tell it from another
_PLACES = ("save_every", "threads")  # of no influence on what is computed


@dataclass(frozen=True, slots=True)
class Outcome:
    score: DraftScore  # of the best weights, on held-out text
    state: TrainingState


def train(
    model: str,
    data: Path,
    out: Path,
    recipe: Recipe,
    options: TrainOptions | None = None,
    *,
    callback: TrainingCallback | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Trains what ``recipe`` describes beside ``model`` and writes it to ``out``, with ``training.json`` about how it went.

    A run that was killed goes on where it was when the same call is made again. None if ``stop`` asked to stop: then the state is
    saved likewise. Raises ``HastenError``; nothing is written before the data has been read.
    """
    options, callback = options or TrainOptions(), callback or Silent()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = resolve(model, quiet=isinstance(callback, Silent))
    settings = _settings(folder, data, recipe, options)
    resume = ResumeFolder.open(out, settings)
    corpus = _corpus(model, folder, data, recipe, options, resume, callback, stop)
    if corpus is None:
        return None
    callback.note(f"{len(corpus.train_N):,} tokens to train on, {len(corpus.held_out_N):,} held out")
    target = TargetModel.load(folder)
    task = recipe.build(target, corpus, options.seed)
    fit = TrainingLoop(task, corpus, options, resume, callback, lr=settings["lr"], weight_decay=recipe.weight_decay)
    score = fit.run(stop)
    if score is None:
        return None
    more = task.finish(corpus, options, callback, stop) if isinstance(task, Finisher) else {}
    if more is None:
        return None
    report = {"model": model, **settings, "held_out_score": score.as_dict(), **more, "evaluations": fit.state.evaluations}
    with writing(out):
        task.save(out, score)
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    resume.remove()
    return Outcome(score, fit.state)


def _corpus(
    model: str,
    folder: Path,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    resume: ResumeFolder,
    callback: TrainingCallback,
    stop: Callable[[], bool],
) -> Corpus | None:
    """The streams of tokens; those of a run that was cut off are read, not made again. None if ``stop`` asked to stop."""
    found = resume.read("corpus")
    if found is not None:
        return Corpus(found["train"], found["held_out"])
    spec = trainable_spec(folder)
    if options.seq_len > spec.max_positions:
        raise InvalidOption(
            "the window is longer than the model's context", got=f"{options.seq_len} tokens", allowed=f"up to {spec.max_positions}"
        )
    tokenizer = TextTokenizer.load(folder, spec.vocab_size)
    if tokenizer is None:
        raise InvalidOption("this checkpoint has no tokenizer, so no text can be read for it", remedy="Copy one into its folder")
    if options.self_distill is not None:
        # To be refused now, not after hours of writing. Nothing of it is kept: the engine that writes needs the memory.
        token = torch.zeros(1, dtype=torch.int32)
        recipe.build(TargetModel.load(folder), Corpus(token, token), options.seed)
    callback.note(f"reading {data}")
    documents = encode(data, tokenizer)
    if options.self_distill is not None:
        callback.note(f"writing {options.self_distill} texts of {options.seq_len} tokens to train on")
        engine: dict[str, Any] = {} if options.threads is None else {"threads": options.threads}
        written = generate(model, documents, options.self_distill, options.seq_len, options.seed, resume, stop, **engine)
        if written is None:
            return None
        documents = written
    corpus = Corpus.split(documents, options.seq_len, options.validation_fraction, tokenizer.eos_token_id)
    resume.write("corpus", {"train": corpus.train_N, "held_out": corpus.held_out_N})
    return corpus


def _settings(folder: Path, data: Path, recipe: Recipe, options: TrainOptions) -> dict[str, Any]:
    """Whatever the result depends on, as plain data: a run goes on only if all of it is the same."""
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in _PLACES}
    fields: Any = recipe
    chosen = dataclasses.asdict(fields)
    asked["lr"] = options.lr or recipe.learning_rate
    try:
        with data.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidOption(f"the file {data} cannot be read", got=error.strerror, remedy="Give a file of UTF-8 text") from None
    return {
        "kind": recipe.name,
        **chosen,
        **asked,
        "data_sha256": content,
        "model_sha256": _fingerprint(folder),
        **({} if chosen.get("start") is None else {"start_sha256": _whole(resolve(chosen["start"], quiet=True))}),
    }


def _fingerprint(folder: Path) -> str:
    """Of the configuration, and of the size and the ends of every file of weights: enough to notice another model."""
    checkpoint = Checkpoint.open(folder)
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file in sorted({entry.file for entry in checkpoint.tensors.values()}):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read())
    return digest.hexdigest()


def _whole(folder: Path) -> str:
    """Of all that is read of a checkpoint that training begins with: a head that was trained again has the same sizes."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()
