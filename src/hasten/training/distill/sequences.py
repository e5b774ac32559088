"""The fixed sequences whose teacher outputs are cached: examples, or windows of a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hasten.quality.documents import read_text_file
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Corpus, NumberedSource
from hasten.training.distill.cache_facts import EXAMPLES, WINDOWS
from hasten.training.documents import encode_documents
from hasten.training.examples import Examples, read_examples
from hasten.training.fixed_windows import FixedWindows


def read_sequences(data: Path, tokenizer: TextTokenizer, seq_len: int, fraction: float) -> tuple[str, NumberedSource]:
    """Return the kind of sequences and the sequences of a file.

    A .jsonl file whose first record has an "input" holds examples, and any other file is text. Raises ``InvalidOption``.
    """
    if has_examples(data):
        return EXAMPLES, Examples.split(read_examples(data, tokenizer, seq_len), fraction)
    documents = encode_documents(data, tokenizer)
    return WINDOWS, FixedWindows.split(documents, seq_len, fraction, tokenizer.eos_token_id)


def has_examples(data: Path) -> bool:
    """Whether the first record of a file is an example.

    Raises ``InvalidOption`` for a file that cannot be read.
    """
    text = read_text_file(data)
    if data.suffix.lower() != ".jsonl":
        return False
    try:
        record = json.loads(text.lstrip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False  # the reader of texts says what is wrong
    return isinstance(record, dict) and "input" in record


def restore_sequences(kind: str, tensors: Mapping[str, Tensor], seq_len: int, vocab_size: int) -> NumberedSource:
    """Return sequences from their ``tensors()``. Raises ``ValueError`` that says what is wrong with them."""
    source = _restore_examples(tensors, vocab_size) if kind == EXAMPLES else _restore_windows(tensors, seq_len, vocab_size)
    if bool((source.predicted_counts_N < 1).any()):
        raise ValueError("a sequence has no predicted token")
    return source


def sequences_digest(source: NumberedSource) -> str:
    """Return the SHA-256 of the sequences and their split, in hexadecimal."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(source.tensors().items()):
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    """Return the SHA-256 of a tokenizer, in hexadecimal."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _restore_examples(tensors: Mapping[str, Tensor], vocab_size: int) -> Examples:
    _check(tensors, {"ids_T": torch.int32, "ends_N": torch.int64, "num_input_N": torch.int64, "counts": torch.int64})
    examples = Examples(**tensors)
    lengths_N = examples.ends_N.diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
    if not len(lengths_N) or bool((lengths_N < 1).any()) or int(examples.ends_N[-1]) != len(examples.ids_T):
        raise ValueError("the ends of the examples are not ascending")
    if len(examples.num_input_N) != len(lengths_N) or bool((examples.num_input_N < 0).any()):
        raise ValueError("the inputs of the examples have no valid length")
    if len(examples.counts) != 3 or bool((examples.counts < 0).any()) or not int(examples.counts[0]):
        raise ValueError("the examples are not split in three")
    if max(examples.counts.tolist()) > len(lengths_N) or int(examples.counts.sum()) != len(lengths_N):
        raise ValueError("the split has another number of examples")
    _check_ids(examples.ids_T, vocab_size)
    return examples


def _restore_windows(tensors: Mapping[str, Tensor], seq_len: int, vocab_size: int) -> FixedWindows:
    _check(
        {**tensors, "seq_len": tensors["seq_len"].flatten()},
        {"train_N": torch.int32, "validation_N": torch.int32, "seq_len": torch.int64},
    )
    streams = {name: tensors[name] for name in ("train_N", "validation_N")}
    if tensors["seq_len"].numel() != 1 or int(tensors["seq_len"]) != seq_len:
        raise ValueError(f"the windows have not {seq_len} tokens")
    if len(streams["train_N"]) < seq_len or len(streams["validation_N"]) < 2 * seq_len:
        raise ValueError("a stream is shorter than its windows")
    for stream in streams.values():
        _check_ids(stream, vocab_size)
    return FixedWindows(Corpus(**streams), seq_len)


def _check(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    if {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()} != {name: (t, 1) for name, t in dtypes.items()}:
        raise ValueError("it has other tensors")


def _check_ids(ids_T: Tensor, vocab_size: int) -> None:
    if int(ids_T.min()) < 0 or int(ids_T.max()) >= vocab_size:
        raise ValueError("a token id is outside the vocabulary")
