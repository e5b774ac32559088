"""``build_task``: the training task of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hasten.training.base import TrainingTask
from hasten.training.corpus import BatchSource
from hasten.training.draft_model_task import DraftModelTask
from hasten.training.draft_score import DraftScore
from hasten.training.eagle_task import EagleTask
from hasten.training.early_exit.task import EarlyExitTask
from hasten.training.medusa_task import MedusaTask
from hasten.training.recipes import DraftModelRecipe, EagleRecipe, EarlyExitRecipe, MedusaRecipe, Recipe, SoftPromptRecipe
from hasten.training.soft_prompt_task import SoftPromptTask
from hasten.training.target_model import TargetModel

_TASKS: Mapping[type, Callable[..., TrainingTask[DraftScore]]] = {
    MedusaRecipe: MedusaTask,
    EagleRecipe: EagleTask,
    DraftModelRecipe: DraftModelTask,
    EarlyExitRecipe: EarlyExitTask,
    SoftPromptRecipe: SoftPromptTask,
}


def build_task(recipe: Recipe, target: TargetModel, corpus: BatchSource, seed: int) -> TrainingTask[DraftScore]:
    """Return a task whose initial parameters depend on the arguments only.

    Raises ``HastenError`` if the recipe does not fit the model.
    """
    return _TASKS[type(recipe)](target, recipe, corpus, seed)
