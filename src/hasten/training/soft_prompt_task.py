"""``SoftPromptTask``: trains embeddings before the input of a frozen model.

Prompt tuning: Lester et al., 2021, arXiv 2104.08691.

Shape suffixes: B examples · S tokens per example · P virtual tokens · L = P + S positions · R output tokens · E hidden size ·
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt
from hasten.core.errors import InvalidOption, show
from hasten.layers.attention import DenseContext
from hasten.quality.intervals import mean_interval
from hasten.text.tokenizer import TextTokenizer
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch
from hasten.training.draft_score import DraftScore
from hasten.training.examples import Examples
from hasten.training.lm_head_loss import Labels, lm_head_loss
from hasten.training.options import TrainOptions
from hasten.training.predicted_rows import predicted_rows
from hasten.training.recipes import SoftPromptRecipe
from hasten.training.target_model import TargetModel


class SoftPromptTask:
    """The loss is the cross entropy of output tokens. No padding of a batch changes it."""

    def __init__(self, target: TargetModel, recipe: SoftPromptRecipe, examples: Examples, seed: int) -> None:
        """Raise ``InvalidOption`` for an initial text without tokens, or too many virtual tokens."""
        self.target, self._examples = target, examples
        lengths = torch.diff(examples.ends_N, prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
        if (longest := recipe.virtual_tokens + int(lengths.max())) > target.spec.max_positions:
            raise InvalidOption(
                "virtual tokens and the longest example exceed the model's context",
                got=f"{recipe.virtual_tokens} + {int(lengths.max())} = {longest}",
                allowed=f"up to {target.spec.max_positions}",
                remedy="Choose fewer with --virtual-tokens, or shorten the examples",
            )
        ids_P = _initial_ids(target, recipe, seed)
        self.prompt_PE = nn.Parameter(target.decoder.embed(ids_P).detach().float().clone())

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"prompt_embeddings": self.prompt_PE}

    def loss(self, batch: Batch) -> Tensor:
        hidden_RE, labels = self._run(batch, self.prompt_PE)
        return lm_head_loss(hidden_RE, self.target.lm_head_VE, labels) / len(hidden_RE)

    def weight(self, batch: Batch) -> float:
        """Return the number of output tokens, over which the loss is a mean."""
        return float(len(predicted_rows(batch).rows_R))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> DraftScore:
        """Return the loss over the output tokens."""
        hidden_RE, labels = self._run(batch, self.prompt_PE)
        loss = float(lm_head_loss(hidden_RE, self.target.lm_head_VE, labels))
        return DraftScore(loss=loss, num_positions=len(hidden_RE), accepted=(), reached=(), rank_hits=())

    @torch.no_grad()
    def calibrate(
        self, corpus: Examples, options: TrainOptions, callback: TrainingCallback, should_stop: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Measure on the held-out examples, which decided nothing, what the soft prompt gains.

        The entries are means over examples of the loss per output token. There are none without held-out examples. None if
        ``should_stop`` returned True.
        """
        if not int(corpus.counts[2]):
            return {}
        losses: list[tuple[float, float]] = []
        for batch in corpus.held_out_batches(1):
            if should_stop():
                return None
            without, tuned = (self._run(batch, prompt_PE) for prompt_PE in (self.prompt_PE[:0], self.prompt_PE))
            first, second = (float(lm_head_loss(h, self.target.lm_head_VE, labels)) / len(h) for h, labels in (without, tuned))
            losses.append((first, second))
        gains = torch.tensor([first - second for first, second in losses], dtype=torch.float64, device="cpu")
        interval = mean_interval(float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)), len(gains))
        without_mean, with_mean = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        assert interval is not None
        callback.on_log(
            f"{len(losses)} held-out examples: loss {without_mean:.3f} without the soft prompt, {with_mean:.3f} with it; "
            f"{float(gains.mean()):.3f} less, 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        )
        return {
            "held_out": {
                "examples": len(losses),
                "loss_without_soft_prompt": without_mean,
                "loss": with_mean,
                "gain": float(gains.mean()),
                "gain_interval": list(interval),
            }
        }

    def save(self, folder: Path, score: DraftScore) -> None:
        spec = self.target.spec
        base_model = str(self.target.config.get("_name_or_path") or self.target.folder)
        heads = spec.layers[0].attention.num_heads
        write_soft_prompt(
            folder, self.prompt_PE, TrainedFor(base_model=base_model, num_layers=spec.num_layers, num_attention_heads=heads)
        )

    def _run(self, batch: Batch, prompt_PE: Tensor) -> tuple[Tensor, Labels]:
        """Return the lm_head's input where it predicts an output token [R, E], and these tokens."""
        assert batch.is_output_BS is not None
        decoder, num_virtual = self.target.decoder, len(prompt_PE)
        num_examples, length = batch.ids_BS.shape
        embedded_BSE = decoder.embed(batch.ids_BS.flatten()).view(num_examples, length, -1)
        input_BLE = torch.cat([prompt_PE.expand(num_examples, -1, -1), embedded_BSE], dim=1)
        context = DenseContext(self.target.ops, decoder.rotary, [num_virtual + length] * num_examples)
        last_TE = decoder.run(input_BLE.flatten(0, 1), context.positions_T, context)
        last_BSE = last_TE.view(num_examples, num_virtual + length, -1)[:, num_virtual:]
        # The position before an output token predicts it; an input has at least one token.
        hidden_RE = decoder.norm(last_BSE[:, :-1][batch.is_output_BS[:, 1:]])
        return hidden_RE, Labels(batch.ids_BS[:, 1:][batch.is_output_BS[:, 1:]])


def _initial_ids(target: TargetModel, recipe: SoftPromptRecipe, seed: int) -> Tensor:
    """Return the tokens with the initial embeddings: those of a text, repeated, or random ones."""
    if recipe.init_text is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(target.spec.vocab_size, (recipe.virtual_tokens,), generator=generator)
    tokenizer = TextTokenizer.load(target.folder, target.spec.vocab_size)
    ids = [] if tokenizer is None else tokenizer.encode(recipe.init_text, add_special_tokens=False)
    if not ids:
        remedy = "Give another one with --init-text"
        raise InvalidOption("the initial text has no tokens", got=show(recipe.init_text), remedy=remedy)
    repeated = (ids * -(-recipe.virtual_tokens // len(ids)))[: recipe.virtual_tokens]
    return torch.tensor(repeated, dtype=torch.int64, device="cpu")
