"""``PreferencePairs``: inputs with a better and a worse output, as token ids.

Shape suffixes: P pairs of a batch · B = 2·P sequences, the chosen ones first · N pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption, show
from hasten.quality.documents import read_text_file
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch, derived_seed
from hasten.training.examples import Example, Examples, output_tokens


class Pair(NamedTuple):
    chosen: Example
    rejected: Example  # of the same input


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch(Batch):
    """The chosen sequences, then the rejected ones, in the same order."""

    reference_B: Tensor | None = None  # log-probability of each output by the reference, in nats


@dataclass(frozen=True, slots=True)
class PreferencePairs:
    chosen: Examples  # training pairs, then those for validation
    rejected: Examples
    reference_N2: Tensor | None = None  # log-probabilities of the outputs by the reference, chosen and rejected

    @property
    def summary(self) -> str:
        train, validation, _ = self.chosen.counts.tolist()
        return f"{train:,} pairs for training, {validation:,} for validation"

    @property
    def num_pairs(self) -> int:
        return len(self.chosen.ends_N)

    @classmethod
    def split(cls, pairs: Sequence[Pair], fraction: float) -> PreferencePairs:
        """Return pairs of which ``fraction`` are for validation.

        Pairs of one input stay together. Raises ``InvalidOption`` for less than two different inputs.
        """
        keyed = sorted((hashlib.sha256(_input_bytes(pair)).digest(), pair) for pair in pairs)
        groups = [[pair for _, pair in group] for _, group in groupby(keyed, key=lambda item: item[0])]
        if len(groups) < 2:
            raise InvalidOption(
                "there are too few pairs to train on some and to keep others for validation",
                got=f"{len(pairs)} pairs of {len(groups)} different inputs",
                allowed="from 2 different inputs",
                remedy="Give more pairs",
            )
        validation: list[Pair] = []
        while len(groups) > 1 and len(validation) < max(1, round(len(pairs) * fraction)):
            validation += groups.pop()
        train = [pair for group in groups for pair in group]
        chosen, rejected = (Examples.join([pair[side] for pair in train], [pair[side] for pair in validation]) for side in (0, 1))
        return cls(chosen, rejected)

    def with_reference(self, reference_N2: Tensor) -> PreferencePairs:
        return dataclasses.replace(self, reference_N2=reference_N2)

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> PairBatch:
        """Return the ``size`` pairs of a step; each epoch shuffles them. ``seq_len`` limits none."""
        num_train, indices = int(self.chosen.counts[0]), []
        rows = range(step * size, (step + 1) * size)
        for epoch in range(rows[0] // num_train, rows[-1] // num_train + 1):
            order = torch.randperm(num_train, generator=torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch)))
            begin, end = max(rows[0], epoch * num_train), min(rows[-1] + 1, (epoch + 1) * num_train)
            indices += [int(order[row % num_train]) for row in range(begin, end)]
        return self.select(indices, derived_seed(seed, "step", step))

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[PairBatch]:
        """Yield at most ``limit`` validation pairs in batches. Every call yields the same batches."""
        begin, count = int(self.chosen.counts[0]), int(self.chosen.counts[1])
        return self._batches(range(begin, begin + min(count, limit)), size)

    def all_batches(self, size: int) -> Iterator[PairBatch]:
        """Yield all pairs in their order."""
        return self._batches(range(self.num_pairs), size)

    def _batches(self, indices: range, size: int) -> Iterator[PairBatch]:
        return (self.select(indices[i : i + size], i) for i in range(0, len(indices), size))

    def select(self, indices: Sequence[int], seed: int) -> PairBatch:
        """Return these pairs, padded on the right with tokens that do not count."""
        sides = [side.select(indices, seed) for side in (self.chosen, self.rejected)]
        length = max(side.ids_BS.shape[1] for side in sides)
        ids, masks = [], []
        for side in sides:
            assert side.is_output_BS is not None
            padding = (0, length - side.ids_BS.shape[1])
            ids.append(torch.nn.functional.pad(side.ids_BS, padding))
            masks.append(torch.nn.functional.pad(side.is_output_BS, padding))
        reference_B = None if self.reference_N2 is None else self.reference_N2[list(indices)].T.flatten()
        return PairBatch(torch.cat(ids), seed, torch.cat(masks), reference_B=reference_B)


def read_pairs(file: Path, tokenizer: TextTokenizer, seq_len: int) -> list[Pair]:
    """Return the pairs of a file with one ``{"input": ..., "chosen": ..., "rejected": ...}`` per line.

    Blank lines are skipped, and so are further keys. Outputs end with the tokenizer's end token. Raises ``InvalidOption`` that
    names the first wrong line, or the first pair with more than ``seq_len`` tokens.
    """
    pairs = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if line.strip():
            given, *outputs = read_line(file, number, line, ("input", "chosen", "rejected"))
            ids = tokenizer.encode(given)
            sides = [Example([*ids, *output_tokens(tokenizer, output)], len(ids)) for output in outputs]
            longest = max(len(side.ids) for side in sides)
            if not ids or longest > seq_len:
                raise InvalidOption(
                    f"the pair in line {number} of {file} has too few or too many tokens",
                    got=f"{len(ids)} of input and {longest - len(ids)} of the longer output",
                    allowed=f"from 1 of each, and up to {seq_len} in all",
                    remedy="Correct the line, or raise --seq-len",
                )
            pairs.append(Pair(*sides))
    return pairs


def read_line(file: Path, number: int, line: str, keys: Sequence[str]) -> list[str]:
    """Return the texts under ``keys`` of one line of JSON, none of them blank. Raises ``InvalidOption``."""
    try:
        record = json.loads(line)
        texts = [record[key] for key in keys]
        if not all(isinstance(text, str) and text.strip() and text.encode() for text in texts):
            raise ValueError("no text")
    except (ValueError, TypeError, KeyError, RecursionError):
        form = ", ".join(f'"{key}": "..."' for key in keys)
        raise InvalidOption(
            f"line {number} of {file} has no {' and '.join(keys)}",
            got=show(line),
            allowed=f"one {{{form}}} per line, with texts that are not blank",
        ) from None
    return texts


def _input_bytes(pair: Pair) -> bytes:
    return array("i", pair.chosen.ids[: pair.chosen.num_input]).tobytes()
