"""``train``: one complete training, from a model's name and a text file to a finished checkpoint.

Shape suffix: N tokens of a stream.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption
from hasten.ops.cpu.cores import choose_threads
from hasten.text.tokenizer import TextTokenizer
from hasten.training.base import CalibratedTask
from hasten.training.build_task import build_task
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.documents import encode_documents, generate_documents
from hasten.training.draft_score import DraftScore
from hasten.training.examples import Examples, read_examples
from hasten.training.loop import TrainingLoop, TrainingState
from hasten.training.options import TrainOptions
from hasten.training.recipes import Recipe, SoftPromptRecipe
from hasten.training.resume import ResumeFolder, write_errors
from hasten.training.target_model import TargetModel, trainable_spec

REPORT = "training.json"
_FINGERPRINT_BYTES = 1 << 20  # read at both ends of a weight file
_NOT_IN_SETTINGS = ("save_every", "threads")  # options that do not change the result


@dataclass(frozen=True, slots=True)
class TrainingResult:
    score: DraftScore  # of the best parameters, on validation text
    state: TrainingState


def train(
    model: str,
    data: Path,
    out: Path,
    recipe: Recipe,
    options: TrainOptions | None = None,
    *,
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingResult | None:
    """Train what ``recipe`` describes on the file ``data`` and write it to ``out``.

    ``training.json`` in ``out`` reports settings and scores. The same call resumes a killed run. None if ``should_stop`` returned
    True; the state is saved then. Raises ``HastenError``, and writes nothing before the data is read.
    """
    quiet = callback is None
    options, callback = options or TrainOptions(), callback or TrainingCallback()
    threads = choose_threads(options.threads)
    if options.threads is not None or torch.get_num_threads() > threads:
        torch.set_num_threads(threads)
    folder = resolve(model, quiet=quiet)
    trainable_spec(folder)  # before its files are read
    settings = _settings(folder, data, recipe, options)
    resume = ResumeFolder.open(out, settings)
    corpus = _load_corpus(model, folder, data, recipe, options, resume, callback, should_stop)
    if corpus is None:
        return None
    callback.on_log(corpus.summary)
    task = build_task(recipe, TargetModel.load(folder), corpus, options.seed)
    loop = TrainingLoop(task, corpus, options, resume, callback, lr=settings["lr"], weight_decay=recipe.weight_decay)
    score = loop.run(should_stop)
    if score is None:
        return None
    calibration = task.calibrate(corpus, options, callback, should_stop) if isinstance(task, CalibratedTask) else {}
    if calibration is None:
        return None
    scores = {"held_out_score": score.as_dict(), **calibration, "evaluations": loop.state.evaluations}
    with write_errors(out):
        task.save(out, score)
        (out / REPORT).write_text(json.dumps({"model": model, **settings, **scores}, indent=1) + "\n", encoding="utf-8")
    resume.remove()
    return TrainingResult(score, loop.state)


def _load_corpus(
    model: str,
    folder: Path,
    data: Path,
    recipe: Recipe,
    options: TrainOptions,
    resume: ResumeFolder,
    callback: TrainingCallback,
    should_stop: Callable[[], bool],
) -> Corpus | Examples | None:
    """Return what the recipe trains on, from a resumed run if possible.

    None if ``should_stop`` returned True.
    """
    saved = resume.read("corpus")
    if saved is not None:
        return Examples(**saved) if isinstance(recipe, SoftPromptRecipe) else Corpus(**saved)
    spec = trainable_spec(folder)
    if options.seq_len > spec.max_positions:
        raise InvalidOption(
            "seq_len exceeds the model's context", got=f"{options.seq_len} tokens", allowed=f"up to {spec.max_positions}"
        )
    tokenizer = TextTokenizer.load(folder, spec.vocab_size)
    if tokenizer is None:
        remedy = "Use a file that has one" if is_gguf(folder) else "Copy one into its folder"
        raise InvalidOption("this checkpoint has no tokenizer to encode text with", remedy=remedy)
    if isinstance(recipe, SoftPromptRecipe):
        examples = _load_examples(data, tokenizer, options)
        resume.write("corpus", examples.tensors())
        return examples
    if options.self_distill is not None:
        # Refuse a bad recipe before hours of generation. The task is dropped: the engine needs its memory.
        token = torch.zeros(1, dtype=torch.int32)
        build_task(recipe, TargetModel.load(folder), Corpus(token, token), options.seed)
    callback.on_log(f"reading {data}")
    documents = encode_documents(data, tokenizer)
    if options.self_distill is not None:
        callback.on_log(f"generating {options.self_distill} documents of {options.seq_len} tokens to train on")
        engine: dict[str, Any] = {} if options.threads is None else {"threads": options.threads}
        count, seq_len, seed = options.self_distill, options.seq_len, options.seed
        generated = generate_documents(model, documents, count, seq_len, seed, resume, should_stop, **engine)
        if generated is None:
            return None
        documents = generated
    corpus = Corpus.split(documents, options.seq_len, options.validation_fraction, tokenizer.eos_token_id)
    resume.write("corpus", corpus.tensors())
    return corpus


def _load_examples(data: Path, tokenizer: TextTokenizer, options: TrainOptions) -> Examples:
    if options.self_distill is not None:
        raise InvalidOption(
            "a soft prompt is trained on examples, and the model generates none",
            got=f"self_distill={options.self_distill}",
            remedy="Leave out self_distill",
        )
    return Examples.split(read_examples(data, tokenizer, options.seq_len), options.validation_fraction)


def _settings(folder: Path, data: Path, recipe: Recipe, options: TrainOptions) -> dict[str, Any]:
    """Return everything that the result depends on, as plain data. A run resumes only with equal settings."""
    try:
        if data.exists() and not data.is_file():  # a device may have no end, and a pipe cannot be read twice
            raise OSError("not a regular file")
        with data.open("rb") as stream:
            data_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        got = getattr(error, "strerror", None) or error
        raise InvalidOption(f"the file {data} cannot be read", got=got, remedy="Give a file of UTF-8 text") from None
    settings = {"kind": recipe.name, **dataclasses.asdict(recipe), **dataclasses.asdict(options)}
    settings |= {"lr": options.lr or recipe.learning_rate, "data_sha256": data_sha256, "model_sha256": _fingerprint(folder)}
    if settings.get("init_from") is not None:
        settings["init_from_sha256"] = _sha256(resolve(settings["init_from"], quiet=True))
    return {name: value for name, value in settings.items() if name not in _NOT_IN_SETTINGS}


def _fingerprint(folder: Path) -> str:
    """Return a hash of the configuration and of the size and both ends of every weight file."""
    checkpoint = Checkpoint.open(folder)
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for file in sorted({entry.file for entry in checkpoint.tensors.values()}):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size}".encode() + stream.read(_FINGERPRINT_BYTES))
            stream.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def _sha256(folder: Path) -> str:
    """Return a hash of all files of a checkpoint, which tells heads of equal size and configuration apart."""
    digest = hashlib.sha256()
    files = [folder] if is_gguf(folder) else sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()
