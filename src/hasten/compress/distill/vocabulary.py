"""``Vocabulary``: the tokenizers of a teacher and its student, and whether they share token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.compress.distill.student import StudentPlan
from hasten.core.errors import InvalidOption
from hasten.models.spec import DecoderSpec
from hasten.text.tokenizer import TextTokenizer
from hasten.training.distill.recipe import SFT, DistillRecipe


@dataclass(frozen=True, slots=True)
class Vocabulary:
    student: TextTokenizer
    teacher: TextTokenizer | None
    folder: Path  # whose tokenizer and templates are the student's
    is_shared: bool

    @classmethod
    def of(cls, plan: StudentPlan, spec: DecoderSpec) -> Vocabulary:
        """Return the tokenizers; ``spec`` is the teacher's. A student without a tokenizer takes the teacher's.

        Raises ``InvalidOption`` if there is none.
        """
        teacher = TextTokenizer.load(plan.teacher, spec.vocab_size)
        own = None if plan.folder == plan.teacher else TextTokenizer.load(plan.folder, plan.spec.vocab_size)
        if own is not None:
            return cls(own, teacher, plan.folder, teacher is not None and _same_tokens(own, teacher, plan.spec, spec))
        if teacher is None or plan.spec.vocab_size != spec.vocab_size:
            raise InvalidOption(
                "no tokenizer encodes text for the student",
                got=f"{plan.folder} without one, and {'none' if teacher is None else 'another vocabulary'} in {plan.teacher}",
                remedy="Copy a tokenizer into the student's folder",
            )
        return cls(teacher, teacher, plan.teacher, True)

    def check(self, recipe: DistillRecipe) -> None:
        """Raise ``InvalidOption`` for a loss that compares tokens of different vocabularies."""
        if recipe.needs_teacher and not self.is_shared:
            got = f"loss={recipe.loss}" + (f" with hidden_weight={recipe.hidden_weight:g}" if recipe.hidden_weight else "")
            raise InvalidOption(
                "the teacher and the student have different vocabularies, so their outputs cannot be compared token by token",
                got=got,
                allowed=f"{SFT}, which learns from text",
                remedy="Choose --loss sft, on text that the teacher generated (hasten data generate)",
            )


def _same_tokens(first: TextTokenizer, second: TextTokenizer, spec: DecoderSpec, other: DecoderSpec) -> bool:
    ids = range(max(spec.vocab_size, other.vocab_size))
    return first.ids_to_tokens(ids) == second.ids_to_tokens(ids)
