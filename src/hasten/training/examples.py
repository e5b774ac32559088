"""``Examples``: inputs with outputs, for training, validation and held out, as token ids.

The content of an example decides where it belongs. The seed and the step decide which examples a step reads, so a resumed run
reads the same batches.

Shape suffixes: B examples of a batch · S tokens of the longest one · T tokens of all examples · N examples.
"""

from __future__ import annotations

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
from hasten.training.corpus import Batch, derived_seed, shuffled_indices


class Example(NamedTuple):
    ids: list[int]
    num_input: int  # leading tokens that are given; the loss is on the others


@dataclass(frozen=True, slots=True)
class Examples:
    ids_T: Tensor  # int32
    ends_N: Tensor  # int64: where each example ends in ``ids_T``; training examples first, then validation, then held-out ones
    num_input_N: Tensor  # int64
    counts: Tensor  # int64 [3]: training, validation and held-out examples

    @property
    def summary(self) -> str:
        train, validation, held_out = self.counts.tolist()
        return f"{train:,} examples for training, {validation:,} for validation, {held_out:,} held out"

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields."""
        return {"ids_T": self.ids_T, "ends_N": self.ends_N, "num_input_N": self.num_input_N, "counts": self.counts}

    def digest(self) -> str:
        """Return the SHA-256 of all examples, in hexadecimal."""
        hasher = hashlib.sha256()
        for tensor in (self.counts, self.ends_N, self.num_input_N, self.ids_T):
            hasher.update(tensor.numpy().tobytes())
        return hasher.hexdigest()

    @classmethod
    def split(cls, examples: Sequence[Example], fraction: float) -> Examples:
        """Return examples of which ``fraction`` are for validation and held out, one half each.

        Copies stay together. Raises ``InvalidOption`` for less than one training, one validation and two held-out examples.
        """
        keyed = sorted((hashlib.sha256(array("i", [e.num_input, *e.ids]).tobytes()).digest(), e) for e in examples)
        groups = [[example for _, example in group] for _, group in groupby(keyed, key=lambda pair: pair[0])]
        sizes = (max(2, round(len(examples) * fraction / 2)), max(1, round(len(examples) * fraction / 2)))
        parts: list[list[Example]] = []
        for size in sizes:
            part: list[Example] = []
            while groups and len(part) < size:
                part += groups.pop()
            parts.append(part)
        held_out, validation, train = *parts, [example for group in groups for example in group]
        if not train:
            raise InvalidOption(
                "there are too few examples to train on some and to keep others for validation",
                got=f"{len(examples)} examples, {len({key for key, _ in keyed})} different ones",
                allowed="from 4 different ones",
                remedy="Give more examples",
            )
        return cls.join(train, validation, held_out)

    @classmethod
    def join(cls, train: Sequence[Example], validation: Sequence[Example], held_out: Sequence[Example] = ()) -> Examples:
        """Return examples that the caller has split."""
        listed = [*train, *validation, *held_out]
        return cls(
            ids_T=_tensor([token for example in listed for token in example.ids]).int(),
            ends_N=_tensor([len(example.ids) for example in listed]).cumsum(0),
            num_input_N=_tensor([example.num_input for example in listed]),
            counts=_tensor([len(train), len(validation), len(held_out)]),
        )

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        """Return the examples of a step; each epoch shuffles them. ``seq_len`` limits none."""
        indices = shuffled_indices(step, size, int(self.counts[0]), seed)
        return self.select(indices, derived_seed(seed, "step", step))

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield at most ``limit`` validation examples in batches. Every call yields the same batches."""
        begin, count = int(self.counts[0]), int(self.counts[1])
        return self._batches(range(begin, begin + min(count, limit)), size)

    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """Yield the examples that decided nothing."""
        return self._batches(range(int(self.counts[:2].sum()), int(self.counts.sum())), size)

    @property
    def predicted_counts_N(self) -> Tensor:
        """The number of predicted tokens of each example, int64 [N].

        They are those of the output; the first token of an example is never predicted.
        """
        return self.ends_N.diff(prepend=self.ends_N.new_zeros(1)) - self.num_input_N.clamp(min=1)

    def numbered(self, indices: Sequence[int]) -> Batch:
        """Return these examples as one batch, which has their indices."""
        return self.select(indices, derived_seed(0, "numbered", indices[0]))

    def _batches(self, indices: range, size: int) -> Iterator[Batch]:
        return (self.select(indices[i : i + size], i) for i in range(0, len(indices), size))

    def select(self, indices: Sequence[int], seed: int) -> Batch:
        """Return these examples, padded on the right with tokens that do not count."""
        ends = [int(self.ends_N[i]) for i in indices]
        rows = [self.ids_T[int(self.ends_N[i - 1]) if i else 0 : end] for i, end in zip(indices, ends, strict=True)]
        ids_BS = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
        positions_S = torch.arange(ids_BS.shape[1], device="cpu")
        lengths_B = _tensor([len(row) for row in rows])
        is_output_BS = (positions_S >= self.num_input_N[list(indices), None]) & (positions_S < lengths_B[:, None])
        return Batch(ids_BS, seed, is_output_BS, tuple(indices))


def read_examples(file: Path, tokenizer: TextTokenizer, seq_len: int) -> list[Example]:
    """Return the examples of a file with one ``{"input": ..., "output": ...}`` per line.

    Blank lines are skipped. Inputs are encoded as prompts are, and outputs end with the tokenizer's end token. Raises
    ``InvalidOption`` that names the first wrong line, or the first example of more than ``seq_len`` tokens.
    """
    examples = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if not line.strip():
            continue
        given, expected = example_texts(file, number, line)
        ids = tokenizer.encode(given)
        example = Example([*ids, *output_tokens(tokenizer, expected)], len(ids))
        if not 0 < len(ids) < len(example.ids) <= seq_len:
            raise InvalidOption(
                f"the example in line {number} of {file} has too few or too many tokens",
                got=f"{len(ids)} of input and {len(example.ids) - len(ids)} of output",
                allowed=f"from 1 of each, and up to {seq_len} in all",
                remedy="Correct the line, or raise --seq-len",
            )
        examples.append(example)
    return examples


def output_tokens(tokenizer: TextTokenizer, output: str, *, has_end: bool = True) -> list[int]:
    """Return the tokens of an output after its input, with the end token if there is one and ``has_end``."""
    end = [] if tokenizer.eos_token_id is None or not has_end else [tokenizer.eos_token_id]
    return [*tokenizer.encode_fragment(output), *end]


def example_texts(file: Path, number: int, line: str) -> tuple[str, str]:
    """Return the input and the output of one line of a file.

    Raises ``InvalidOption`` for a line that is no example.
    """
    try:
        record = json.loads(line)
        texts = record["input"], record["output"]
        if not all(isinstance(text, str) and text.strip() and text.encode() for text in texts):
            raise ValueError("no text")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidOption(
            f"line {number} of {file} is no example",
            got=show(line),
            allowed='one {"input": "...", "output": "..."} per line, with texts that are not blank',
        ) from None
    return texts


def _tensor(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
