"""``calibration_ids``: the token sequences on which a quantisation is calibrated.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

import hashlib
import warnings
from array import array
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption
from hasten.quality.documents import CALIBRATION, read_texts, split_lines
from hasten.text.tokenizer import TextTokenizer

PASSAGE_CHARS = 1 << 14  # longer texts are cut into passages, so that the sequences come from many parts of a long file
SURPLUS = 4  # the sequences are drawn from at most this many times their number; a long file is not encoded to its end


class CalibrationWarning(UserWarning):
    """The calibration text is too short for the requested number of sequences."""


def calibration_ids(
    file: Path | None, tokenizer: TextTokenizer | None, *, samples: int, seq_len: int, seed: int, max_positions: int
) -> Tensor:
    """Return up to ``samples`` different sequences of ``seq_len`` tokens, [B, S] int64.

    ``file`` is one of ``read_texts``; None: the text that ships with hasten. ``max_positions`` is the context of the model. The
    passages of the text are joined in an order drawn by ``seed``, each with the end-of-sequence token behind it, and then cut into
    sequences. A sequence may hold several passages, as in training.

    Warns with ``CalibrationWarning`` if the text has fewer sequences, and then returns them all. Raises ``InvalidOption`` for a
    file that cannot be read or has not even one sequence, for a ``seq_len`` beyond the context, and for a model without a
    tokenizer. Raises ``InvalidRequest`` for a text that the vocabulary cannot express.
    """
    if seq_len > max_positions:
        raise InvalidOption("seq_len exceeds the model's context", got=f"{seq_len:,} tokens", allowed=f"up to {max_positions:,}")
    if tokenizer is None:
        raise InvalidOption(
            "this checkpoint has no tokenizer to encode the calibration text with",
            remedy="Copy one into its folder, or choose a method without calibration",
        )
    passages = [passage for text in read_texts(file or CALIBRATION) for passage in split_lines(text, PASSAGE_CHARS)]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    order = torch.randperm(len(passages), generator=generator).tolist()
    stream = _encode((passages[index] for index in order), tokenizer, SURPLUS * samples * seq_len)
    available = len(stream) // seq_len
    source = file or "that ships with hasten"
    if available == 0:
        raise InvalidOption(
            f"the calibration text {source} is too short for one sequence",
            got=f"{len(stream):,} tokens",
            allowed=f"at least {seq_len:,}; some {samples * seq_len:,} for {samples:,} sequences",
            remedy="Give a longer text, or lower seq_len",
        )
    if available < samples:
        warnings.warn(
            f"the calibration text {source} has {available:,} sequences of {seq_len:,} tokens and not {samples:,}: "
            f"hasten calibrates on {available:,}",
            CalibrationWarning,
            stacklevel=2,
        )
    ids_BS = torch.frombuffer(stream, dtype=torch.int32)[: available * seq_len].view(available, seq_len)
    chosen_B = torch.randperm(available, generator=generator)[:samples]
    return ids_BS[chosen_B].long()


def calibration_digest(ids_BS: Tensor) -> str:
    """Return the SHA-256 of the sequences, in hexadecimal digits."""
    digest = hashlib.sha256(str(list(ids_BS.shape)).encode())
    digest.update(ids_BS.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(passages: Iterable[str], tokenizer: TextTokenizer, max_tokens: int) -> array[int]:
    """Return the token ids of passages up to the one that reaches ``max_tokens``, without special tokens.

    The end-of-sequence token, if there is one, follows each passage.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = array("i")
    for passage in passages:
        stream.extend(tokenizer.encode(passage, add_special_tokens=False))
        stream.extend(end)
        if len(stream) >= max_tokens:
            break
    return stream
