"""``train``: one complete training, from a model's name and a text file to a finished checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.build_task import build_task
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.documents import file_digest
from hasten.training.examples import Examples, read_examples
from hasten.training.load_tokenizer import load_tokenizer
from hasten.training.options import TrainOptions
from hasten.training.read_corpus import read_corpus
from hasten.training.recipes import Recipe, SoftPromptRecipe
from hasten.training.target_model import TargetModel, check_seq_len, trainable_spec
from hasten.training.training_run import TrainingResult, TrainingRun


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
    digest = partial(file_digest, data)
    run = TrainingRun.open(model, out, recipe, options or TrainOptions(), digest, callback, should_stop)
    corpus = _load_corpus(run, data)
    return None if corpus is None else run.complete(corpus)


def train_on_examples(
    model: str,
    examples: Examples,
    out: Path,
    recipe: SoftPromptRecipe,
    options: TrainOptions,
    *,
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingResult | None:
    """Train a soft prompt on examples in memory. All else is as for ``train``."""
    return TrainingRun.open(model, out, recipe, options, examples.digest, callback, should_stop).complete(examples)


def _load_corpus(run: TrainingRun, data: Path) -> Corpus | Examples | None:
    """Return what the recipe trains on, from a resumed run if possible.

    None if ``should_stop`` returned True.
    """
    options, recipe = run.options, run.recipe
    saved = run.resume.read("corpus")
    if saved is not None:
        return Examples(**saved) if isinstance(recipe, SoftPromptRecipe) else Corpus(**saved)
    spec = trainable_spec(run.folder)
    check_seq_len(options.seq_len, spec)
    tokenizer = load_tokenizer(run.folder, spec.vocab_size)
    if isinstance(recipe, SoftPromptRecipe):
        examples = _load_examples(data, tokenizer, options)
        run.resume.write("corpus", examples.tensors())
        return examples
    if options.self_distill is not None:
        # Refuse a bad recipe before hours of generation. The task is dropped: the engine needs its memory.
        token = torch.zeros(1, dtype=torch.int32)
        build_task(recipe, TargetModel.load(run.folder), Corpus(token, token), options.seed)
    corpus = read_corpus(
        run.model, data, tokenizer, options=options, resume=run.resume, callback=run.callback, should_stop=run.should_stop
    )
    if corpus is not None:
        run.resume.write("corpus", corpus.tensors())
    return corpus


def _load_examples(data: Path, tokenizer: TextTokenizer, options: TrainOptions) -> Examples:
    if options.self_distill is not None:
        raise InvalidOption(
            "a soft prompt is trained on examples, and the model generates none",
            got=f"self_distill={options.self_distill}",
            remedy="Leave out self_distill",
        )
    return Examples.split(read_examples(data, tokenizer, options.seq_len), options.validation_fraction)
