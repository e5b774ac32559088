"""Instruction-following difficulty: the loss of an output after its input, over its loss alone.

The measure is of Li et al., 2024, "From Quantity to Quality". A value near 1 means that the input helps little, which is what the
student has to learn. From 1 on it does not help at all, so the pair may be wrong; such examples are dropped.

Shape suffix: N examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.compress.distill.selection.losses import ExampleLosses
from hasten.training.examples import Example

NO_HELP = "examples whose input does not help to predict the output"


def with_and_without_input(examples: Sequence[Example], begin: Sequence[int]) -> tuple[list[Example], list[Example]]:
    """Return the examples with their inputs and without, with the same predicted tokens.

    ``begin`` are the tokens with which every text begins, such as the begin-of-sequence token. Without any, the first token of an
    output is predicted in neither, because no token is before it.
    """
    skipped = 0 if begin else 1
    with_input = [Example(example.ids, example.num_input + skipped) for example in examples]
    alone = [Example([*begin, *example.ids[example.num_input :]], max(1, len(begin))) for example in examples]
    return with_input, alone


def difficulties(with_input: ExampleLosses, alone: ExampleLosses) -> Tensor:
    """Return the ratio of both losses, float64 [N].

    It is infinite where it would be 1 or more, and where nothing is predicted.
    """
    ratios_N = with_input.sums_N / alone.sums_N
    return torch.where(ratios_N < 1, ratios_N, torch.inf)
