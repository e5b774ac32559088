"""From a file of the user's to documents of token ids: its own texts, or what the model writes after beginnings cut from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hasten.core.errors import CheckpointError, InvalidOption
from hasten.entrypoints.llm import LLM
from hasten.quality.documents import read_texts
from hasten.text.tokenizer import TextTokenizer
from hasten.training.resume import ResumeFolder

# Some tokenizers slow down with the length of a text, so a long one is encoded in parts that end with a line.
PART = 1 << 16
ROUND = 64  # texts that are generated, and saved, at a time
PROMPT_SHARE = 8  # of a window is its eighth the beginning that the model goes on from


def encode(file: Path, tokenizer: TextTokenizer) -> list[list[int]]:
    """The documents of ``read_texts``, without special tokens. Raises ``InvalidOption``."""
    return [[token for part in _parts(text) for token in tokenizer.encode(part, special=False)] for text in read_texts(file)]


def _parts(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PART:
        end = text.find("\n", start + PART) + 1
        if end == 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


def generate(
    model: str,
    documents: Sequence[Sequence[int]],
    count: int,
    window: int,
    seed: int,
    resume: ResumeFolder,
    stop: Callable[[], bool],
    **options: Any,
) -> list[list[int]] | None:
    """``count`` texts of a window each: a beginning from the documents, and the model's own continuation of it, sampled as its
    ``generation_config.json`` says and not stopped by an end token. What a run that ended early has written is not written again.
    None if ``stop``, which is asked before every ``ROUND`` texts, asked to stop.
    """
    beginnings = _beginnings(documents, count, max(1, window // PROMPT_SHARE), seed)
    texts: list[list[int]] = []
    llm: LLM | None = None
    for first in range(0, count, ROUND):
        name = f"generated-{first:08}"
        found = resume.read(name)
        if found is None:
            if stop():
                return None
            llm = llm or LLM(model, max_model_len=window, seed=seed, max_num_seqs=ROUND, **options)
            found = {"ids": torch.tensor(_continue(llm, beginnings[first : first + ROUND], window, seed + first))}
            resume.write(name, found)
        texts += found["ids"].tolist()
    return texts


def _beginnings(documents: Sequence[Sequence[int]], count: int, length: int, seed: int) -> list[list[int]]:
    """Each place of the text is as likely as any other; documents shorter than a beginning are left out."""
    places = [(index, len(document) - length + 1) for index, document in enumerate(documents) if len(document) >= length]
    total = sum(room for _, room in places)
    if total == 0:
        raise InvalidOption(
            "no text is long enough to cut a beginning from",
            got=f"{max((len(document) for document in documents), default=0)} tokens in the longest",
            allowed=f"from {length}, an eighth of a window",
            remedy="Give longer texts, or smaller windows with --seq-len",
        )
    found = []
    for number in range(count):
        digest = hashlib.sha256(f"{seed}/beginning/{number}".encode()).digest()
        at = int.from_bytes(digest[:8], "little") % total
        for index, room in places:
            if at < room:
                found.append(list(documents[index][at : at + length]))
                break
            at -= room
    return found


def _continue(llm: LLM, beginnings: Sequence[Sequence[int]], window: int, seed: int) -> list[list[int]]:
    plain = llm.default_sampling_params()
    requests = [
        plain.replace(seed=seed + number, max_tokens=window - len(beginning), ignore_eos=True, stop=(), n=1)
        for number, beginning in enumerate(beginnings)
    ]
    outputs = llm.generate([{"prompt_token_ids": list(beginning)} for beginning in beginnings], requests)
    failed = [output.error for output in outputs if output.error is not None]
    if failed:
        raise CheckpointError("the model could not write texts to train on", got=failed[0])
    return [[*beginning, *output.outputs[0].token_ids] for beginning, output in zip(beginnings, outputs, strict=True)]
