"""``read_replay``: text that a student reads again while it learns another, so that it forgets less.

Experience replay of earlier data is as old as Robins, 1995; a few percent are enough for language models (Scialom et al., 2022).
"""

from __future__ import annotations

from array import array
from pathlib import Path

import torch

from hasten.core.errors import InvalidOption, show
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Corpus
from hasten.training.documents import encode_documents

DEFAULT_SHARE = 0.1  # of batches


def check_share(share: float) -> None:
    """Raise ``InvalidOption`` for a share of batches that is out of range."""
    if not (isinstance(share, (int, float)) and 0 < share < 1):
        raise InvalidOption("the share of replayed batches is out of range", got=show(share), allowed="above 0 and below 1")


def read_replay(file: Path, tokenizer: TextTokenizer, seq_len: int) -> Corpus:
    """Return all of a file's text as a training stream. Raises ``InvalidOption``."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = array("i")
    for document in encode_documents(file, tokenizer):
        stream.extend([*document, *end])
    if len(stream) < seq_len:
        raise InvalidOption(
            f"the replay text {file} is too short for one sequence",
            got=f"{len(stream):,} tokens",
            allowed=f"at least {seq_len:,}",
            remedy="Give a longer text with --replay, or shorter sequences with --seq-len",
        )
    return Corpus(torch.frombuffer(stream, dtype=torch.int32).clone(), torch.zeros(0, dtype=torch.int32, device="cpu"))
