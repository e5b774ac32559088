"""``hasten train dpo``, ``reward-model`` and ``grpo``: train a whole model by preferences or rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.report import print_table
from hasten.cli.train import TRAINING, Out
from hasten.training.options import TrainOptions
from hasten.training.preference.recipes import DpoRecipe, PolicyRecipe, RewardModelRecipe

if TYPE_CHECKING:
    from hasten.training.preference.preference_run import PreferenceResult

GRPO_STEPS, GRPO_BATCH, GRPO_PATIENCE = 200, 32, 10  # by default; rewards of few outputs are noisy

_SHARED = {name: text for name, text in TRAINING.help.items() if name != "self_distill"}
PAIR_TRAINING = dataclasses.replace(
    TRAINING,
    help={
        **_SHARED,
        "batch": "Pairs per batch.",
        "seq_len": "Maximum tokens of an input with an output.",
        "validation_fraction": "Part of the pairs that is kept for validation.",
        "seed": "Seed of the order of pairs.",
    },
)
POLICY_TRAINING = dataclasses.replace(
    TRAINING,
    help={
        **_SHARED,
        "steps": f"Optimizer steps; {GRPO_STEPS} by default.",
        "batch": f"Outputs per batch, a multiple of --group-size; {GRPO_BATCH} by default.",
        "seq_len": "Maximum tokens of a prompt.",
        "validation_fraction": "Part of the prompts that is never trained on, and on which the reward is measured.",
        "patience": f"Stop after this many evaluations, of 20 in all, without a higher reward; {GRPO_PATIENCE} by default.",
        "seed": "Seed of the order of prompts and of sampling.",
    },
)
DPO = OptionGroup(
    "recipe",
    "Preferences",
    DpoRecipe,
    {
        "loss": "sigmoid (DPO) or ipo.",
        "beta": "The larger, the nearer the model stays to the reference.",
        "label_smoothing": "Assumed share of pairs in the wrong order.",
    },
)
REWARD_MODEL = OptionGroup(
    "recipe", "Reward model", RewardModelRecipe, {"center": "Weight of (chosen + rejected score)², which keeps scores near 0."}
)
POLICY = OptionGroup(
    "recipe",
    "Policy",
    PolicyRecipe,
    {
        "algorithm": "grpo, or rloo: REINFORCE with the mean of the group's other rewards as the baseline.",
        "group_size": "Outputs per prompt.",
        "max_new_tokens": "Tokens per output.",
        "temperature": "Of sampling, and of the distribution that is trained.",
        "beta": "Weight of the KL divergence from the reference.",
        "clip": "Limit of importance ratios: from 1 - clip to 1 + clip.",
        "scale": "Divide advantages by the group's standard deviation; --no-scale as in Dr. GRPO.",
        "loss_mean": "Mean of token losses: sequence (per output, then over outputs), token (over all) or constant (Dr. GRPO).",
        "refresh_every": "Batches between two generations of outputs.",
        "max_kl": "Limit of the KL divergence per token from the reference, in nats, which the result keeps.",
    },
)

Pairs = Annotated[
    Path,
    typer.Option(
        "--data", metavar="FILE", help='A .jsonl file with "input", "chosen" and "rejected" per line.', show_default=False
    ),
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", metavar="MODEL", help="The model to stay near; by default the model itself before training."),
]
Prompts = Annotated[
    Path, typer.Option("--prompts", metavar="FILE", help='A .jsonl file with an "input" per line.', show_default=False)
]
RewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        metavar="NAME",
        help="compiles (1 if prompt and output are Python source), FILE.py:NAME (your function of input and output, in a process "
        "of its own) or the folder of a reward model.",
        show_default=False,
    ),
]


@with_options(DPO, PAIR_TRAINING)
def dpo(
    data: Pairs,
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    reference: Reference = None,
    debug: Debug = False,
    *,
    recipe: OptionValues,
    training: OptionValues,
) -> None:
    """Train a model to prefer chosen outputs to rejected ones (DPO), near a reference.

    The same command resumes a run that was killed.
    """
    from hasten.training.preference.train import train_dpo

    chosen, options, source = DpoRecipe(**recipe), TrainOptions(**training), model_name(name, model)
    _run(out, lambda **further: train_dpo(source, data, out, chosen, options, reference=reference, **further))


@with_options(REWARD_MODEL, PAIR_TRAINING)
def reward_model(
    data: Pairs,
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    debug: Debug = False,
    *,
    recipe: OptionValues,
    training: OptionValues,
) -> None:
    """Train a reward model on pairs, which transformers loads as a sequence classifier with one label.

    The same command resumes a run that was killed.
    """
    from hasten.training.preference.train import train_reward_model

    chosen, options, source = RewardModelRecipe(**recipe), TrainOptions(**training), model_name(name, model)
    _run(out, lambda **further: train_reward_model(source, data, out, chosen, options, **further))


@with_options(POLICY, POLICY_TRAINING)
def grpo(
    prompts: Prompts,
    reward: RewardName,
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    reference: Reference = None,
    debug: Debug = False,
    *,
    recipe: OptionValues,
    training: OptionValues,
) -> None:
    """Train a model by rewards of its own outputs (GRPO or RLOO), near a reference.

    The same command resumes a run that was killed.
    """
    from hasten.training.preference.train import train_policy

    training = {
        "batch": GRPO_BATCH,
        "patience": GRPO_PATIENCE,
        **({} if "minutes" in training else {"steps": GRPO_STEPS}),
        **training,
    }
    chosen, options, source = PolicyRecipe(**recipe), TrainOptions(**training), model_name(name, model)
    result = _run(
        out, lambda **further: train_policy(source, prompts, out, chosen, options, reward=reward, reference=reference, **further)
    )
    rows = [
        (title, f"{score['reward']:.3f}", f"{score['kl_to_reference']:.4f}", str(score["outputs"]))
        for title, score in (("before", result.report["score_before"]), ("after", result.report["held_out_score"]))
    ]
    print_table(("", "REWARD", "KL PER TOKEN", "OUTPUTS"), rows)


def _run(out: Path, train: Callable[..., PreferenceResult[Any] | None]) -> PreferenceResult[Any]:
    """Return the result, or exit after Ctrl-C."""
    from hasten.training.callback import console_callback

    with Interrupt() as interrupt, console_callback() as callback:
        result = train(callback=callback, should_stop=lambda: interrupt.requested)
        if result is None:
            callback.on_log("stopped; the same command resumes the training")
            raise typer.Exit(INTERRUPTED)
        callback.on_log(f"written to {out}; loss {result.score.mean_loss:.3f}, {result.score.describe()}")
    return result
