"""``DistillRun``: everything that one distillation reads, checked before its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import resolve
from hasten.checkpoints.model_digest import model_digest
from hasten.checkpoints.reader import Checkpoint
from hasten.compress.distill.replay import check_share
from hasten.compress.distill.student import StudentPlan, StudentSource, plan_student
from hasten.compress.distill.vocabulary import Vocabulary
from hasten.compress.prune.shape import num_parameters
from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import InvalidOption, UnsupportedModel
from hasten.models.spec import DecoderSpec
from hasten.training.callback import TrainingCallback
from hasten.training.device import choose_device
from hasten.training.distill.cache_facts import FILE
from hasten.training.distill.cached_teacher import CachedTeacher, open_cached
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.documents import file_digest
from hasten.training.options import TrainOptions
from hasten.training.target_model import trainable_spec

STATE_BYTES = 36  # per parameter: two saved states of weights, moments and best weights, and the result
_NOT_IN_SETTINGS = ("save_every", "threads")  # options that do not change the result


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The files that a distillation reads."""

    data: Path  # texts, or examples with "input" and "output"
    replay: Path | None = None
    replay_share: float  # of the batches; without effect if there is no ``replay``
    outside: Path | None = None  # on which forgetting is measured; None: the held-out text that ships with hasten
    cache: Path | None = None  # the teacher's outputs for ``data``; None: the teacher runs

    def settings(self) -> dict[str, Any]:
        """Return what the result depends on. Raises ``InvalidOption`` for a file that cannot be read."""
        settings: dict[str, Any] = {"data_sha256": file_digest(self.data)}
        if self.replay is not None:
            check_share(self.replay_share)
            settings |= {"replay_sha256": file_digest(self.replay), "replay_share": self.replay_share}
        if self.outside is not None:
            settings["outside_sha256"] = file_digest(self.outside)
        if self.cache is not None:
            settings["teacher_cache_sha256"] = file_digest(self.cache / FILE)
        return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRun:
    teacher: str  # as the caller names it
    folder: Path  # of the teacher
    spec: DecoderSpec  # of the teacher
    plan: StudentPlan
    vocabulary: Vocabulary
    texts: Texts
    cached: CachedTeacher | None  # that of ``texts.cache``
    recipe: DistillRecipe
    options: TrainOptions
    device: str  # cpu or cuda
    settings: dict[str, Any]  # all that the result depends on
    work: WorkFolder
    callback: TrainingCallback
    should_stop: Callable[[], bool]

    @classmethod
    def open(
        cls,
        teacher: str,
        student: StudentSource,
        out: Path,
        *,
        texts: Texts,
        recipe: DistillRecipe,
        options: TrainOptions,
        device: str,
        callback: TrainingCallback | None,
        should_stop: Callable[[], bool],
    ) -> DistillRun:
        """Check everything but the contents of the files, and write nothing. Raises ``HastenError``."""
        folder = resolve(teacher, quiet=callback is None)
        if is_gguf(folder):
            raise UnsupportedModel(
                "a teacher is a folder of safetensors files", got=folder, remedy="Give the checkpoint that it was made from"
            )
        spec = trainable_spec(folder)
        plan = plan_student(student, folder, spec, quiet=callback is None)
        vocabulary = Vocabulary.of(plan, spec)
        vocabulary.check(recipe)
        context = min(plan.spec.max_positions, spec.max_positions) if vocabulary.is_shared else plan.spec.max_positions
        if options.seq_len > context:
            raise InvalidOption("seq_len exceeds the models' context", got=f"{options.seq_len} tokens", allowed=f"up to {context}")
        cached = None if texts.cache is None else _open_cache(texts, folder, vocabulary, recipe, options)
        device = choose_device("cpu" if cached is not None and device == "auto" else device)  # a cache is read on the CPU
        settings = {
            **dataclasses.asdict(recipe),
            **dataclasses.asdict(options),
            "lr": options.lr or recipe.learning_rate,
            "device": device,
            "teacher_sha256": model_digest(Checkpoint.open(folder)).weights,
            **plan.identity,
            **texts.settings(),
        }
        settings = {name: value for name, value in settings.items() if name not in _NOT_IN_SETTINGS}
        work = WorkFolder.open(out, settings, resume=True)
        work.check_space(STATE_BYTES * num_parameters(plan.spec))
        return cls(
            teacher=teacher,
            folder=folder,
            spec=spec,
            plan=plan,
            vocabulary=vocabulary,
            texts=texts,
            cached=cached,
            recipe=recipe,
            options=options,
            device=device,
            settings=settings,
            work=work,
            callback=callback or TrainingCallback(),
            should_stop=should_stop,
        )


def _open_cache(texts: Texts, teacher: Path, vocabulary: Vocabulary, recipe: DistillRecipe, options: TrainOptions) -> CachedTeacher:
    """Return the teacher of a cache.

    Raises ``InvalidOption`` for a cache of something else, and for what a cache cannot do.
    """
    assert texts.cache is not None
    for what, value in (("replayed text", texts.replay), ("text that it continues", options.self_distill)):
        if value is not None:
            raise InvalidOption(f"a teacher cache has no {what}", got=value, remedy="Omit the option, or distil without a cache")
    _, cached = open_cached(
        texts.cache,
        teacher=teacher,
        tokenizer=vocabulary.student,
        data=texts.data,
        seq_len=options.seq_len,
        validation_fraction=options.validation_fraction,
        recipe=recipe,
    )
    return cached
