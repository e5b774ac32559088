"""Loss gap: what the teacher knows about an output and the student does not.

Shape suffix: N examples.
"""

from __future__ import annotations

from torch import Tensor

from hasten.compress.distill.selection.losses import ExampleLosses


def loss_gaps(student: ExampleLosses, teacher: ExampleLosses) -> Tensor:
    """Return the student's loss minus the teacher's, in nats per output token of the student, float64 [N].

    The models may have different tokenizers, because both losses are of the same text.
    """
    return (student.sums_N - teacher.sums_N) / student.counts_N
