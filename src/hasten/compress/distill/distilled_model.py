"""``DistilledModel``: a student that was written, with its scores against its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hasten.compress.compressed_model import CompressedModel
from hasten.compress.distill.curves import INSIDE, OUTSIDE
from hasten.compress.distill.forgetting import ForgettingScore
from hasten.training.distill.score import DistillScore

Row = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilledModel(CompressedModel):
    """The scores are of the same validation sequences. ``source`` is the teacher."""

    score: ForgettingScore
    teacher_score: ForgettingScore | None  # None: the teacher did not run
    before: ForgettingScore | None  # of the student before training; None: it had random weights

    def rows(self) -> list[Row]:
        """Return (what, teacher, student)."""
        return list(score_rows(self.score, self.teacher_score, self.before))


def score_rows(score: ForgettingScore, teacher: ForgettingScore | None, before: ForgettingScore | None) -> Iterator[Row]:
    """Yield (what, teacher, student) inside the set and outside it."""
    for text, part in ((INSIDE, "inside"), (OUTSIDE, "outside")):
        student: DistillScore | None = getattr(score, part)
        if student is None:
            continue
        reference, earlier = getattr(teacher, part, None), getattr(before, part, None)
        entries = student.as_dict()
        if "kl" in entries:
            yield f"{text}: mean KL, nats", "0", f"{entries['kl']:.4f}"
        if "coarse_kl" in entries:  # never more than the KL of all tokens
            yield f"{text}: mean KL of {student.top_k} tokens and the rest, nats", "0", f"{entries['coarse_kl']:.4f}"
        if "top1_agreement" in entries:
            yield f"{text}: top-1 agreement", "100 %", f"{entries['top1_agreement']:.2%}"
        was = "" if earlier is None else f" ({earlier.perplexity:.4f} before)"
        yield f"{text}: perplexity", "-" if reference is None else f"{reference.perplexity:.4f}", f"{student.perplexity:.4f}{was}"
