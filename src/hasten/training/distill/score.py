"""``DistillScore``: a student against its teacher and the text, on validation positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillScore:
    """Sums over positions, in nats. They add up over batches."""

    num_positions: int
    nll: float  # -log q of the text's next token, q the student's distribution at temperature 1
    kl: float | None = None  # KL(p ‖ q) from the teacher's p at temperature 1; None: without a teacher
    num_agreed: int | None = None  # positions where both have the same most likely token
    # tokens with a probability of their own in ``kl``, where all others are one class; None: all. Such a KL is a lower bound
    top_k: int | None = None
    text_weight: float = 0.0  # of the text's nll in ``mean_loss``, the rest is kl: as in the loss that is trained

    def __add__(self, other: DistillScore) -> DistillScore:
        return DistillScore(
            num_positions=self.num_positions + other.num_positions,
            nll=self.nll + other.nll,
            kl=None if self.kl is None or other.kl is None else self.kl + other.kl,
            num_agreed=None if self.num_agreed is None or other.num_agreed is None else self.num_agreed + other.num_agreed,
            text_weight=self.text_weight,
            top_k=self.top_k,
        )

    @property
    def mean_loss(self) -> float:
        """The mean of w · nll + (1 - w) · kl, where w is ``text_weight``; without a teacher that of the nll."""
        kl = self.nll if self.kl is None else self.kl
        return (self.text_weight * self.nll + (1 - self.text_weight) * kl) / max(1, self.num_positions)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll / max(1, self.num_positions), 700.0))

    def as_dict(self) -> dict[str, Any]:
        count = max(1, self.num_positions)
        entries: dict[str, Any] = {"loss": self.mean_loss, "positions": self.num_positions, "perplexity": self.perplexity}
        if self.kl is not None and self.top_k is None:
            entries["kl"] = self.kl / count
        elif self.kl is not None:
            entries |= {"coarse_kl": self.kl / count, "coarse_kl_tokens": self.top_k}
        if self.num_agreed is not None:
            entries["top1_agreement"] = self.num_agreed / count
        return entries

    def describe(self) -> str:
        count = max(1, self.num_positions)
        kl = "" if self.kl is None or not (self.text_weight or self.top_k) else f", KL {self.kl / count:.3f}"
        kl += "" if self.top_k is None else f" of {self.top_k} tokens and the rest"
        agreed = "" if self.num_agreed is None else f", same top token {self.num_agreed / count:.1%}"
        return f"perplexity {self.perplexity:.3f}{kl}{agreed}"
