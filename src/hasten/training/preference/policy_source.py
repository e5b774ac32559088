"""``PolicySource``: groups of outputs that the policy generates, with their rewards.

Shape suffixes: B outputs of a batch · T tokens of a window · N outputs of a window · R output tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.text.tokenizer import TextTokenizer
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, derived_seed
from hasten.training.examples import Example, Examples
from hasten.training.options import TrainOptions
from hasten.training.precision import autocast
from hasten.training.preference.output_logprobs import output_logprobs
from hasten.training.preference.policy_loss import group_advantages
from hasten.training.preference.recipes import PolicyRecipe
from hasten.training.preference.rewards import Reward
from hasten.training.resume import ResumeFolder
from hasten.training.rollouts import Rollouts
from hasten.training.sample_outputs import sample_outputs
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

MIN_EVALUATION_OUTPUTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBatch(Batch):
    """Outputs with what the policy learns from them."""

    rewards_B: Tensor
    advantages_B: Tensor | None = None  # None: to evaluate only, as the next two
    sampled_R: Tensor | None = None  # log-probabilities by the model that generated the outputs
    reference_R: Tensor | None = None  # and by the reference


@dataclass(frozen=True, slots=True)
class PolicyPrompts:
    train: Sequence[Sequence[int]]
    held_out: Sequence[Sequence[int]]  # never trained on


class PolicySource:
    def __init__(
        self,
        student: TrainableModel,
        reference: TargetModel,
        prompts: PolicyPrompts,
        reward: Reward,
        tokenizer: TextTokenizer,
        recipe: PolicyRecipe,
        options: TrainOptions,
        resume: ResumeFolder,
        callback: TrainingCallback,
        side_files_of: Path,
    ) -> None:
        """A batch of ``options.batch`` outputs holds whole groups.

        ``side_files_of``: the model with the tokenizer.
        """
        self._student, self._reference, self._prompts, self._reward = student, reference, prompts, reward
        self._tokenizer, self._recipe, self._options, self._resume = tokenizer, recipe, options, resume
        self._side_files_of = side_files_of
        self._rollouts = Rollouts(
            student,
            prompts.train,
            resume,
            side_files_of=side_files_of,
            max_new_tokens=recipe.max_new_tokens,
            refresh_every=recipe.refresh_every,
            temperature=recipe.temperature,
            seed=options.seed,
            threads=options.threads,
            group_size=recipe.group_size,
            annotate=self._annotate,
            callback=callback,
        )

    @property
    def summary(self) -> str:
        return f"{len(self._prompts.train):,} prompts for training, {len(self._prompts.held_out):,} held out"

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> PolicyBatch:
        """Return ``size`` outputs in groups; ``seq_len`` limits none."""
        window, rows = self._rollouts.window(step, size), self._rollouts.rows(step, size)
        batch, examples, notes = window.examples.select(rows, derived_seed(seed, "step", step)), window.examples, window.notes
        tokens_R = torch.cat([_output_positions(examples, index) for index in rows])
        rewards_B = notes["rewards_N"][list(rows)]
        return PolicyBatch(
            batch.ids_BS,
            batch.seed,
            batch.is_output_BS,
            rewards_B=rewards_B,
            advantages_B=group_advantages(rewards_B, self._recipe),
            sampled_R=notes["sampled_T"][tokens_R],
            reference_R=notes["reference_T"][tokens_R],
        )

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[PolicyBatch]:
        """Yield outputs to the held-out prompts by the current policy.

        The prompts and the seeds are the same at every call.
        """
        count = max(limit, MIN_EVALUATION_OUTPUTS)
        prompts = [self._prompts.held_out[number % len(self._prompts.held_out)] for number in range(count)]
        sampled = sample_outputs(
            self._student,
            prompts,
            [derived_seed(self._options.seed, "held out", number) for number in range(count)],
            work=self._resume.folder,
            side_files_of=self._side_files_of,
            num_samples=1,
            max_new_tokens=self._recipe.max_new_tokens,
            temperature=self._recipe.temperature,
            threads=self._options.threads,
        )
        pairs = zip(prompts, sampled.outputs, strict=True)
        examples = Examples.join([Example([*prompt, *ids], len(prompt)) for prompt, (ids,) in pairs], [])
        rewards_N = self._rewards(examples)
        for first in range(0, count, size):
            rows = range(first, min(first + size, count))
            batch = examples.select(rows, first)
            yield PolicyBatch(batch.ids_BS, batch.seed, batch.is_output_BS, rewards_B=rewards_N[list(rows)])

    @torch.no_grad()
    def _annotate(self, examples: Examples) -> Mapping[str, Tensor]:
        """Return rewards, and per token the log-probabilities of policy and reference; 0 in prompts."""
        sampled_T, reference_T = (torch.zeros(len(examples.ids_T), device="cpu") for _ in range(2))
        count = len(examples.ends_N)
        for first in range(0, count, self._options.batch):
            rows = range(first, min(first + self._options.batch, count))
            batch = examples.select(rows, 0)
            tokens_R = torch.cat([_output_positions(examples, index) for index in rows])
            with autocast(self._options.precision):
                sampled_T[tokens_R] = output_logprobs(self._student, batch, self._recipe.temperature)
                reference_T[tokens_R] = output_logprobs(self._reference, batch, self._recipe.temperature)
        return {"rewards_N": self._rewards(examples), "sampled_T": sampled_T, "reference_T": reference_T}

    def _rewards(self, examples: Examples) -> Tensor:
        texts = []
        for index in range(len(examples.ends_N)):
            end, positions_R = int(examples.ends_N[index]), _output_positions(examples, index)
            first = int(positions_R[0])
            ids = examples.ids_T[first - int(examples.num_input_N[index]) : end].tolist()
            texts.append(split_text(self._tokenizer, ids, int(examples.num_input_N[index])))
        return torch.tensor(self._reward.scores(texts), dtype=torch.float32, device="cpu")


def split_text(tokenizer: TextTokenizer, ids: Sequence[int], num_input: int) -> tuple[str, str]:
    """Return the texts of an input and of the output after it, without special tokens."""
    given = tokenizer.decode(ids[:num_input], skip_special_tokens=True)
    both = tokenizer.decode(ids, skip_special_tokens=True)
    if both.startswith(given):
        return given, both[len(given) :]
    return given, tokenizer.decode(ids[num_input:], skip_special_tokens=True)  # a character has tokens on both sides


def _output_positions(examples: Examples, index: int) -> Tensor:
    """Return where the output tokens of an example are in ``ids_T``."""
    begin = int(examples.ends_N[index - 1]) if index else 0
    return torch.arange(begin + int(examples.num_input_N[index]), int(examples.ends_N[index]), device="cpu")
