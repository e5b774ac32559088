"""``build_card``: the model card of a distillation, without figures of size and speed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hasten.compress.distill.distill_run import DistillRun
from hasten.compress.distill.distilled_model import score_rows
from hasten.compress.distill.forgetting import ForgettingScore
from hasten.compress.distill.student import StudentCheckpoint
from hasten.compress.distill.training_data import TrainingData
from hasten.compress.model_card import DENSE, FINETUNE, ModelCard
from hasten.compress.quantize.card import base_model
from hasten.compress.source_license import source_license
from hasten.training.loop import TrainingState

METHOD = "distillation"


def build_card(
    run: DistillRun,
    texts: TrainingData,
    state: TrainingState,
    score: ForgettingScore,
    teacher_score: ForgettingScore | None,
    before: ForgettingScore | None,
) -> ModelCard:
    """Return the card: what the student was made from, how, on what, and its scores."""
    recipe, source = run.recipe, run.plan.source
    changed = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name != "loss" and getattr(recipe, field.name) != field.default
    }
    options: dict[str, Any] = {
        "teacher": _public(run.teacher),
        "student": _public(source.name) if isinstance(source, StudentCheckpoint) else run.plan.describe(),
        "loss": recipe.loss,
        **changed,
        "optimizer": f"{run.options.optimizer}, learning rate {run.settings['lr']:g}",
        "steps": f"{state.step:,} of {state.total_steps:,}",
        "data": f"{run.texts.data.name}: {texts.inside.summary}",
        "SHA-256 of the data": run.settings["data_sha256"],
        "sequences read": f"{state.num_sequences:,}, {state.num_tokens:,} tokens",
    }
    if run.texts.replay is not None:
        options["replay"] = f"{run.texts.replay.name}, {run.texts.replay_share:.0%} of batches"
    for what, teacher, student in score_rows(score, teacher_score, before):
        options[what] = f"{student}; teacher {teacher}"
    parent = source.name if isinstance(source, StudentCheckpoint) else run.teacher
    return ModelCard(
        name=run.work.out.name,
        base_model=base_model(parent),
        relation=FINETUNE,
        license=source_license(run.plan.folder),
        method=METHOD,
        format=DENSE,
        bits=None,
        options=options,
    )


def _public(name: str) -> str:
    """Return a model's id on the hub, or the name of its folder without the user's path."""
    return base_model(name) or Path(name).name
