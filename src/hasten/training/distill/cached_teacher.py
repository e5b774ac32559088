"""``CachedTeacher``: a teacher that was run before, so that distillation does not hold it in memory.

Shape suffixes: R positions of a batch · r some of them · K cached tokens · C classes: K, and the rest if K is less than the
vocabulary · V vocabulary · E hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.model_digest import file_digest, model_digest
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch, NumberedSource
from hasten.training.distill.coarse_log_probs import coarse_log_probs
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.distill.sequences import tokenizer_digest
from hasten.training.distill.teacher_cache import CachedRows, TeacherCache
from hasten.training.predicted_rows import PredictedRows

_WRITE_AGAIN = "Write the cache again with hasten data logits, or leave it out"


def open_cached(
    folder: Path,
    *,
    teacher: Path | None = None,
    tokenizer: TextTokenizer | None = None,
    data: Path | None = None,
    seq_len: int | None = None,
    validation_fraction: float | None = None,
    recipe: DistillRecipe | None = None,
) -> tuple[NumberedSource, CachedTeacher]:
    """Return the sequences of a cache and their teacher.

    What is given must be what the cache was made of and for: the teacher's folder, the student's tokenizer, the data file, the
    options of training and the recipe. Raises ``InvalidOption`` for another one, and ``CheckpointError`` for a damaged cache.
    """
    cache = TeacherCache.open(folder)
    facts = cache.facts
    if teacher is not None:
        _check(folder, "teacher", model_digest(Checkpoint.open(teacher)).weights, facts.teacher_sha256)
    if tokenizer is not None:
        _check(folder, "tokenizer", tokenizer_digest(tokenizer), facts.tokenizer_sha256)
    if data is not None:
        _check(folder, "data", file_digest(data), facts.data_sha256)
    for name, got, allowed in (
        ("seq_len", seq_len, facts.seq_len),
        ("validation_fraction", validation_fraction, facts.validation_fraction),
    ):
        if got is not None and got != allowed:
            raise InvalidOption(f"{folder} was cached with another {name}", got=got, allowed=allowed, remedy=_WRITE_AGAIN)
    result = CachedTeacher(cache)
    if recipe is not None:
        result.check_recipe(recipe)
    return cache.source, result


@dataclass(frozen=True, slots=True)
class CachedTeacher:
    """Reads the outputs of a teacher for the sequences of its cache."""

    cache: TeacherCache

    def check_recipe(self, recipe: DistillRecipe) -> None:
        """Raise ``InvalidOption`` for a recipe that needs more than the cache has."""
        self.check_temperature(recipe.temperature)
        if recipe.on_policy:
            raise _not_cached("outputs that the student generates", f"on_policy={recipe.on_policy}")
        if recipe.hidden_weight and not self.cache.facts.hidden_layers:
            raise _not_cached("hidden states, and this one was written without", f"hidden_weight={recipe.hidden_weight}")

    def outputs(self, batch: Batch, rows: PredictedRows, layers: Collection[int] = ()) -> CachedOutputs:
        """Return what the teacher said about a batch of the cache's sequences.

        ``rows`` are all its predicted positions. Raises ``InvalidOption`` for another batch or layers that are not cached, and
        ``CheckpointError`` for damage.
        """
        if batch.indices is None or not self._has(batch.indices, batch.ids_BS):
            raise _not_cached("sequences that are not its own", "a batch of other ones")
        missing = sorted(set(layers) - set(self.cache.facts.hidden_layers))
        if missing:
            cached = ", ".join(str(layer + 1) for layer in self.cache.facts.hidden_layers) or "none"
            raise InvalidOption(
                "the teacher cache lacks hidden states of layers",
                got=", ".join(str(layer + 1) for layer in missing),
                allowed=f"{cached}, counted from 1",
                remedy="Write it again with --hidden-layers",
            )
        cached_rows = self.cache.rows(batch.indices, layers)
        assert len(cached_rows.token_ids_RK) == len(rows.rows_R), (len(cached_rows.token_ids_RK), len(rows.rows_R))
        return CachedOutputs(self, cached_rows.to(batch.ids_BS.device))

    def _has(self, indices: Sequence[int], ids_BS: Tensor) -> bool:
        """Whether these are the cache's sequences; an index of another source means other text."""
        source = self.cache.source
        return max(indices) < len(source.predicted_counts_N) and torch.equal(source.numbered(indices).ids_BS, ids_BS.cpu())

    def check_temperature(self, temperature: float) -> None:
        """Raise ``InvalidOption`` for a temperature other than 1, unless every token is cached."""
        facts = self.cache.facts
        if temperature != 1 and facts.top_k < facts.vocab_size:
            raise InvalidOption(
                "cached probabilities are those of temperature 1: the sum of the tokens that are not cached is known at no other",
                got=f"temperature={temperature:g}",
                allowed=1,
                remedy="Leave out the temperature or the cache",
            )


@dataclass(frozen=True, slots=True)
class CachedOutputs:
    teacher: CachedTeacher
    rows: CachedRows

    @property
    def hidden_states(self) -> Mapping[int, Tensor]:
        return self.rows.hidden_states

    @property
    def top_k(self) -> int | None:
        facts = self.teacher.cache.facts
        return facts.top_k if facts.top_k < facts.vocab_size else None

    def has_same_top_token(self, start: int, stop: int, logits_rV: Tensor, log_probs: tuple[Tensor, Tensor]) -> Tensor:
        """Return where the student's most likely token, of all, is the teacher's.

        The cache has that one first. The class of the rest is no token.
        """
        student_r = logits_rV[:, : self.teacher.cache.facts.vocab_size].argmax(-1)
        return student_r == self.rows.token_ids_RK[start:stop, 0]

    def log_probs(self, start: int, stop: int, logits_rV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return both models' log-probabilities of cached tokens and of all others together.

        Both are [r, C] float32. Tokens that only the student's vocabulary has do not count, as with ``LiveTeacher``. Raises
        ``InvalidOption`` for a temperature other than 1, unless every token is cached, and for a student that lacks a cached token.
        """
        self.teacher.check_temperature(temperature)
        ids_rK, teacher_rC = self.rows.token_ids_RK[start:stop], self.rows.log_probs_RC[start:stop]
        facts, vocab_size = self.teacher.cache.facts, logits_rV.shape[1]
        logits_rV = logits_rV[:, : facts.vocab_size]
        if int(ids_rK.max()) >= vocab_size or vocab_size <= facts.top_k < facts.vocab_size:
            raise InvalidOption(
                "the teacher cache has tokens that the student's vocabulary lacks",
                got=f"{vocab_size:,} tokens",
                allowed=f"{facts.vocab_size:,}, as the teacher has",
                remedy="Choose a student with the teacher's vocabulary",
            )
        return (teacher_rC / temperature).log_softmax(-1), coarse_log_probs(logits_rV.float() / temperature, ids_rK)


def _check(folder: Path, what: str, got: str, allowed: str) -> None:
    if got != allowed:
        raise InvalidOption(
            f"{folder} is the cache of another {what}", got=f"SHA-256 {got[:12]}", allowed=f"{allowed[:12]}", remedy=_WRITE_AGAIN
        )


def _not_cached(what: str, got: str) -> InvalidOption:
    return InvalidOption(f"a teacher cache has no {what}", got=got, remedy="Omit the option, or distil without a cache")
