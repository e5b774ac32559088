"""``PreferenceRun``: one training of a whole model by preferences or rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from hasten.checkpoints.hub import resolve
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.base import TrainingTask
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import BatchSource
from hasten.training.load_tokenizer import load_tokenizer
from hasten.training.loop import TrainingLoop, TrainingState
from hasten.training.options import TrainOptions
from hasten.training.preference.recipes import PreferenceRecipe
from hasten.training.publish_model import publish_model
from hasten.training.resume import ResumeFolder
from hasten.training.score import AnyScore
from hasten.training.set_threads import set_threads
from hasten.training.target_model import check_seq_len, trainable_spec
from hasten.training.training_run import NOT_IN_SETTINGS, model_fingerprint


@dataclass(frozen=True, slots=True)
class PreferenceResult(Generic[AnyScore]):
    score: AnyScore  # of the best parameters, on validation data
    state: TrainingState
    report: Mapping[str, Any]  # as in ``training.json``


@dataclass(frozen=True, slots=True)
class PreferenceRun:
    model: str  # as the caller names it
    folder: Path  # of the model
    reference: Path  # of the model that it stays near
    tokenizer: TextTokenizer
    max_positions: int
    recipe: PreferenceRecipe
    options: TrainOptions
    settings: dict[str, Any]  # all that the result depends on
    resume: ResumeFolder
    callback: TrainingCallback
    should_stop: Callable[[], bool]

    @classmethod
    def open(
        cls,
        model: str,
        out: Path,
        recipe: PreferenceRecipe,
        options: TrainOptions,
        inputs: Mapping[str, str],
        callback: TrainingCallback | None,
        should_stop: Callable[[], bool],
        reference: str | None = None,
    ) -> PreferenceRun:
        """Check the models and the output folder, and write nothing.

        ``inputs``: digests of all else that the result depends on, by name. ``callback`` None: silent. ``reference`` None: the
        model itself. Raises ``HastenError``.
        """
        if options.self_distill is not None:
            got, remedy = f"self_distill={options.self_distill}", "Leave out self_distill"
            raise InvalidOption("training by preferences generates no documents", got=got, remedy=remedy)
        set_threads(options.threads)
        folder = resolve(model, quiet=callback is None)
        spec = trainable_spec(folder)
        tokenizer = load_tokenizer(folder, spec.vocab_size)
        check_seq_len(options.seq_len, spec)
        reference_folder = folder
        if reference is not None:
            reference_folder = resolve(reference, quiet=callback is None)
            _check_vocabulary(trainable_spec(reference_folder).vocab_size, reference, spec.vocab_size)
            inputs = {**inputs, "reference_sha256": model_fingerprint(reference_folder)}
        settings = {"kind": recipe.name, **dataclasses.asdict(recipe), **dataclasses.asdict(options)}
        settings |= {"lr": options.lr or recipe.learning_rate, **inputs, "model_sha256": model_fingerprint(folder)}
        settings = {name: value for name, value in settings.items() if name not in NOT_IN_SETTINGS}
        resume = ResumeFolder.open(out, settings)
        reports = callback or TrainingCallback()
        return cls(
            model, folder, reference_folder, tokenizer, spec.max_positions, recipe, options, settings, resume, reports, should_stop
        )

    def train(self, task: TrainingTask[AnyScore], source: BatchSource) -> PreferenceResult[AnyScore] | None:
        """Train ``task`` and put its best parameters in place.

        None if ``should_stop`` returned True; the state is saved then.
        """
        self.callback.on_log(source.summary)
        lr, weight_decay = self.settings["lr"], self.recipe.weight_decay
        loop = TrainingLoop(task, source, self.options, self.resume, self.callback, lr=lr, weight_decay=weight_decay)
        score = loop.run(self.should_stop)
        if score is None:
            return None
        state = loop.state
        counts = {"num_sequences": state.num_sequences, "num_tokens": state.num_tokens}
        report = {"held_out_score": score.as_dict(), **counts, "evaluations": state.evaluations}
        return PreferenceResult(score, state, {"model": self.model, **self.settings, **report})

    def publish(
        self, task: TrainingTask[AnyScore], result: PreferenceResult[AnyScore], further: Mapping[str, Any]
    ) -> PreferenceResult[AnyScore]:
        """Write the checkpoint and ``training.json``, with the ``further`` entries. Raises ``HastenError``."""
        complete = dataclasses.replace(result, report={**result.report, **further})
        publish_model(self.resume, lambda folder: task.save(folder, complete.score), complete.report)
        return complete


def _check_vocabulary(found: int, reference: str, vocab_size: int) -> None:
    if found != vocab_size:
        raise InvalidOption(
            "the vocabularies of the model and of the reference differ",
            got=f"{found} tokens in {reference}",
            allowed=f"{vocab_size} tokens",
            remedy="Take a reference of the same family",
        )
