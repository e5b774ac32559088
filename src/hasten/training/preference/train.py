"""``train_dpo``, ``train_reward_model``, ``train_policy``: from names and files to a checkpoint.

The same call resumes a killed run. Each returns None if ``should_stop`` returned True; the state is saved then. Each raises
``HastenError``, and writes nothing before the inputs are read.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from hasten.core.errors import InvalidOption
from hasten.quality.documents import read_text_file
from hasten.training.callback import TrainingCallback
from hasten.training.options import TrainOptions
from hasten.training.precision import autocast
from hasten.training.preference.dpo_task import DpoScore, DpoTask, reference_logprobs
from hasten.training.preference.output_logprobs import output_kl
from hasten.training.preference.policy_score import PolicyScore
from hasten.training.preference.policy_source import PolicyPrompts, PolicySource
from hasten.training.preference.policy_task import PolicyTask
from hasten.training.preference.preference_pairs import PreferencePairs, read_line, read_pairs
from hasten.training.preference.preference_run import PreferenceResult, PreferenceRun
from hasten.training.preference.recipes import DpoRecipe, PolicyRecipe, RewardModelRecipe
from hasten.training.preference.reward_model import RewardModel
from hasten.training.preference.reward_model_task import RewardModelTask, RewardScore
from hasten.training.preference.rewards import find_reward
from hasten.training.resume import damaged_state
from hasten.training.schedule import MAX_EVALUATION_SEQUENCES
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

REFERENCE = "reference"  # in the resume folder
BASELINE = "baseline"
_BASELINE_FIELDS = ("num_outputs", "num_positions", "reward", "kl")


def train_dpo(
    model: str,
    data: Path,
    out: Path,
    recipe: DpoRecipe,
    options: TrainOptions,
    *,
    reference: str | None = None,
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PreferenceResult[DpoScore] | None:
    """Train a model on the pairs in ``data``. ``reference`` None: the model itself before training."""
    run = PreferenceRun.open(model, out, recipe, options, {"data_sha256": _digest(data)}, callback, should_stop, reference)
    pairs = PreferencePairs.split(read_pairs(data, run.tokenizer, options.seq_len), options.validation_fraction)
    student = TrainableModel.load(run.folder)
    saved = run.resume.read(REFERENCE)
    if saved is None:
        run.callback.on_log(f"computing the reference's log-probabilities of {pairs.num_pairs:,} pairs")
        scorer = student if reference is None else TargetModel.load(run.reference)
        with autocast(options.precision):  # as the task computes, so that the first margins are 0
            reference_N2 = reference_logprobs(scorer, pairs, options.batch, should_stop)
        if reference_N2 is None:
            return None
        run.resume.write(REFERENCE, {"logprobs_N2": reference_N2})
    else:
        reference_N2 = saved.get("logprobs_N2", torch.empty(0, device="cpu"))
        if reference_N2.shape != (pairs.num_pairs, 2):
            raise damaged_state(run.resume.folder, f"{REFERENCE} has other pairs")
    task = DpoTask(student, recipe, run.folder)
    result = run.train(task, pairs.with_reference(reference_N2))
    if result is None:
        return None
    kl = _kl_to_model(student, run.reference, pairs, options)
    run.callback.on_log(f"KL to the reference along validation outputs: {kl:.4f} nats per token")
    return run.publish(task, result, {"kl_to_reference": kl})


def train_reward_model(
    model: str,
    data: Path,
    out: Path,
    recipe: RewardModelRecipe,
    options: TrainOptions,
    *,
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PreferenceResult[RewardScore] | None:
    """Train a reward model, which begins as ``model``, on the pairs in ``data``."""
    run = PreferenceRun.open(model, out, recipe, options, {"data_sha256": _digest(data)}, callback, should_stop)
    pairs = PreferencePairs.split(read_pairs(data, run.tokenizer, options.seq_len), options.validation_fraction)
    task = RewardModelTask(RewardModel.new(run.folder), recipe)
    result = run.train(task, pairs)
    return None if result is None else run.publish(task, result, {})


def train_policy(
    model: str,
    prompts: Path,
    out: Path,
    recipe: PolicyRecipe,
    options: TrainOptions,
    *,
    reward: str,
    reference: str | None = None,
    callback: TrainingCallback | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PreferenceResult[PolicyScore] | None:
    """Train a model by the rewards of its outputs to the prompts in a file.

    ``reference`` None: the model itself before training.

    ``reward``: as for ``find_reward``. The result keeps ``recipe.max_kl``: of the evaluations within it, it is the one with the
    highest reward, and training ends at the first one beyond it. Raises ``InvalidOption`` if there is none within it.
    """
    if options.batch % recipe.group_size:
        raise InvalidOption(
            "a batch holds whole groups of outputs",
            got=f"batch={options.batch}, group_size={recipe.group_size}",
            allowed=f"batches of a multiple of {recipe.group_size}",
            remedy=f"Use --batch {max(1, options.batch // recipe.group_size) * recipe.group_size}, or another --group-size",
        )
    with closing(find_reward(reward)) as rewards:
        inputs = {"data_sha256": _digest(prompts), "reward": rewards.identity}
        run = PreferenceRun.open(model, out, recipe, options, inputs, callback, should_stop, reference)
        split = split_prompts(_read_prompts(prompts, run, recipe), options.validation_fraction)
        student, frozen = TrainableModel.load(run.folder), TargetModel.load(run.reference)
        source = PolicySource(student, frozen, split, rewards, run.tokenizer, recipe, options, run.resume, run.callback, run.folder)
        task = PolicyTask(student, frozen, recipe, run.folder)
        baseline = _baseline(run, task, source)
        result = run.train(task, source)
    if result is None:
        return None
    if result.score.must_stop:
        raise InvalidOption(
            f"no evaluation within the KL limit, or the final one exceeds it; {run.resume.folder.parent} has no model",
            got=f"{result.score.mean_kl:.4g} nats per token",
            allowed=f"up to {recipe.max_kl:g}",
            remedy="Train with a smaller --lr, a larger --beta or a larger --max-kl, in another folder",
        )
    return run.publish(task, result, {"score_before": baseline.as_dict()})


def split_prompts(prompts: Sequence[Sequence[int]], fraction: float) -> PolicyPrompts:
    """Return prompts of which ``fraction`` are held out, by their content.

    Raises ``InvalidOption`` for less than 2 different ones.
    """
    distinct = sorted(set(map(tuple, prompts)), key=lambda ids: hashlib.sha256(repr(ids).encode()).digest())
    if len(distinct) < 2:
        raise InvalidOption(
            "there are too few prompts", got=f"{len(distinct)} different ones", allowed="from 2", remedy="Give more"
        )
    count = min(len(distinct) - 1, max(1, round(len(distinct) * fraction)))
    return PolicyPrompts(distinct[count:], distinct[:count])


def _read_prompts(file: Path, run: PreferenceRun, recipe: PolicyRecipe) -> list[list[int]]:
    """Return the prompts of a file with one ``{"input": ...}`` per line; further keys are skipped."""
    limit = min(run.options.seq_len, run.max_positions - recipe.max_new_tokens)
    prompts = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if line.strip():
            (text,) = read_line(file, number, line, ("input",))
            ids = run.tokenizer.encode(text)
            if not 0 < len(ids) <= limit:
                raise InvalidOption(
                    f"the prompt in line {number} of {file} has too few or too many tokens",
                    got=f"{len(ids)}",
                    allowed=f"from 1 to {limit}, by seq_len and by the model's context less max_new_tokens",
                    remedy="Correct the line",
                )
            prompts.append(ids)
    return prompts


def _baseline(run: PreferenceRun, task: PolicyTask, source: PolicySource) -> PolicyScore:
    """Return the score of the model before training, measured once."""
    saved = run.resume.read(BASELINE)
    if saved is not None:
        if set(saved) != set(_BASELINE_FIELDS) or any(value.numel() != 1 for value in saved.values()):
            raise damaged_state(run.resume.folder, f"{BASELINE} has other values")
        values = {name: float(value) for name, value in saved.items()}
        return PolicyScore(
            num_outputs=int(values["num_outputs"]),
            num_positions=int(values["num_positions"]),
            reward=values["reward"],
            kl=values["kl"],
            max_kl=task.recipe.max_kl,
        )
    batches = source.validation_batches(run.options.batch, run.options.seq_len, 4 * MAX_EVALUATION_SEQUENCES)
    score = functools.reduce(operator.add, map(task.evaluate, batches))
    tensors = {name: torch.tensor([getattr(score, name)], dtype=torch.float64, device="cpu") for name in _BASELINE_FIELDS}
    run.resume.write(BASELINE, tensors)
    run.callback.on_log(f"before training: {score.describe()}")
    return score


def _kl_to_model(student: TrainableModel, folder: Path, pairs: PreferencePairs, options: TrainOptions) -> float:
    """Return KL(student ‖ model) per output token of validation pairs, in nats."""
    reference, total, count = TargetModel.load(folder), 0.0, 0
    for batch in pairs.validation_batches(options.batch, options.seq_len, MAX_EVALUATION_SEQUENCES):
        kl_R = output_kl(student, reference, batch)
        total, count = total + float(kl_R.double().sum()), count + len(kl_R)
    return total / max(1, count)


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file of text. Raises ``InvalidOption``."""
    return hashlib.sha256(read_text_file(file).encode()).hexdigest()
