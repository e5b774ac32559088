"""What the metadata of a tokenizer in a GGUF file may be, and what is refused."""

from __future__ import annotations

import copy
import itertools
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf import TokenType
from tests.exhaustive import repeats
from tests.text.gguf_vocabularies import byte_metadata, sentencepiece_metadata, write

from hasten.checkpoints.gguf.container import GgufFile
from hasten.core.errors import CheckpointError, UnsupportedModel
from hasten.text import sentencepiece_bpe
from hasten.text.gguf_tokenizer import gguf_tokenizer
from hasten.text.tokenizer import TextTokenizer

LONG = "x" * 5000
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "model missing": (byte_metadata(model=None), "model in model.gguf is missing"),
    "tokens missing": (byte_metadata(tokens=None), "tokens in model.gguf is missing or empty"),
    "no tokens": (byte_metadata(tokens=[]), "is missing or empty"),
    "tokens of another type": (byte_metadata(tokens=["a", 3]), "is not a list of str"),
    "tokens are a text": (byte_metadata(tokens="abc"), "is not a list of str"),
    "the same token": (byte_metadata(tokens=["a", "b", "a"]), "has the same token twice: got 'a'"),
    "a long token": (byte_metadata(tokens=["a", LONG]), "a token of 5,000 characters"),
    "types of another length": (byte_metadata(token_type=[1, 2]), "another length than the list of tokens: got 2 and 263"),
    "an unknown type": (byte_metadata(token_type=[7] * 263), "has an unknown type: got 7"),
    "types that are flags": (byte_metadata(token_type=[True] * 263), "is not a list of int"),
    "scores of another length": (sentencepiece_metadata(scores=[1.0]), "another length"),
    "scores of another type": (sentencepiece_metadata(scores=["1"] * 267), "is not a list of float or int"),
    "scores that are no numbers": (sentencepiece_metadata(scores=[float("nan")] * 267), "is not a number"),
    "merges missing": (byte_metadata(merges=None), "merges in model.gguf is missing"),
    "a merge of one": (byte_metadata(merges=["he"]), "makes no token: got 'he'"),
    "a merge of unknown tokens": (byte_metadata(merges=["h zz"]), "makes no token"),
    "a merge to nothing": (byte_metadata(merges=["h h"]), "makes no token"),
    "the same merge": (byte_metadata(merges=["h e", "h e"]), "the same pair twice"),
    "an id out of range": (byte_metadata(eos_token_id=263), "is not the id of a token: got 263; allowed: 0 to 262"),
    "a negative id": (byte_metadata(bos_token_id=-2), "is not the id of a token"),
    "an id that is a text": (byte_metadata(padding_token_id="3"), "is not the id of a token"),
    "an id that is a flag": (byte_metadata(padding_token_id=True), "is not the id of a token"),
    "a flag that is a number": (byte_metadata(add_bos_token=1), "is not true or false"),
    "a prefix that is a number": (sentencepiece_metadata(add_space_prefix=1), "is not true or false"),
    "pre is a number": (byte_metadata(pre=3), "is not a text"),
    "bos without an id": (byte_metadata(add_bos_token=True, bos_token_id=None), "asks for a token that the file does not name"),
    "eos without an id": (byte_metadata(add_eos_token=True, eos_token_id=None), "asks for a token"),
    "not every byte": (
        sentencepiece_metadata(tokens=["a", "b"], token_type=[1, 1], scores=[0.0, 0.0]),
        "cannot express every text",
    ),
}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        model: (byte_metadata(model=model), rf"got tokenizer.ggml.model='{model}'; allowed: gpt2 .*llama")
        for model in ("bert", "rwkv", "t5", "gemma4", "plamo2", "")
    },
    "pre": (byte_metadata("qwen-2"), "Did you mean 'qwen2'"),
    "pre nothing like it": (byte_metadata("###"), "Choose one of a.x-4.0, .*, tekken"),
    "no pre": (byte_metadata(pre=None), "does not say how its tokenizer splits .* allowed: a.x-4.0, "),
    "default": (byte_metadata("default"), "does not say how its tokenizer splits"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_metadata_is_one_sentence(name: str) -> None:
    metadata, message = REFUSALS[name]
    with pytest.raises(CheckpointError, match=message) as error:
        gguf_tokenizer(metadata, "model.gguf")
    assert "model.gguf" in str(error.value) and not isinstance(error.value, UnsupportedModel)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_tokenizers_are_named(name: str) -> None:
    metadata, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModel, match=message):
        gguf_tokenizer(metadata, "model.gguf")


def test_pieces_without_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one letter make a number of merges that is the square of their number."""
    monkeypatch.setattr(sentencepiece_bpe, "MAX_MERGES", 1_000)
    head = sentencepiece_metadata()["tokenizer.ggml.tokens"][:259]
    for pieces, message in (
        (["a" * 257], "a piece of 257 characters, and 256 are allowed"),
        (["".join(letters) for n in range(1, 9) for letters in itertools.product("ab", repeat=n)], "more than 1,000 ways"),
    ):
        types = [TokenType.NORMAL] * (len(head) + len(pieces))
        file = write(tmp_path, "llama", [*head, *pieces], types, scores=[0.0] * len(types))
        with pytest.raises(CheckpointError, match=message):
            TextTokenizer.load(file, len(types))


TEXT_MUTANTS = ("", " ", "\0", "\ud800", "▁", "<s>", "a b", "h e", "x" * 70_000, "<0x41>", "qwen2", "llama", "gpt2", "🙂")
ITEM_MUTANTS: tuple[Any, ...] = (*TEXT_MUTANTS, 0, -1, 3, 2**70, True, None, 1.5, float("nan"), float("inf"), [], b"a")


def mutate(metadata: dict[str, Any], rng: random.Random) -> None:
    """Change one to three values, or their lengths, in place."""
    for _ in range(rng.randrange(1, 4)):
        if not metadata:
            return
        key = rng.choice(sorted(metadata))
        value = metadata[key]
        kind = rng.randrange(8)
        if kind == 0:
            del metadata[key]
        elif kind == 1:
            metadata[
                rng.choice((key, "tokenizer.ggml.add_eos_token", "tokenizer.chat_template", "tokenizer.ggml.cls_token_id"))
            ] = rng.choice(ITEM_MUTANTS)
        elif not isinstance(value, list) or not value:
            metadata[key] = rng.choice(ITEM_MUTANTS)
        elif kind == 2:
            del value[rng.randrange(len(value)) :]
        elif kind == 3:
            value += [rng.choice((*value, *ITEM_MUTANTS)) for _ in range(rng.randrange(1, 4))]
        elif kind == 4:
            value[rng.randrange(len(value))] = rng.choice(value)
        elif kind == 5:
            rng.shuffle(value)
        else:
            value[rng.randrange(len(value))] = rng.choice(ITEM_MUTANTS)


def test_mutated_metadata_is_refused_or_works(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata: dict[str, Any] = {}
    monkeypatch.setattr(GgufFile, "open", lambda path: SimpleNamespace(path=path, metadata=metadata))
    sources = (byte_metadata("llama-bpe"), byte_metadata("qwen2"), sentencepiece_metadata(), sentencepiece_metadata(merges=["▁ a"]))
    messages: list[str] = []
    slowest = 0.0
    count = repeats("gguf tokenizers")
    for seed, source in zip(range(count), itertools.cycle(sources), strict=False):
        metadata = copy.deepcopy(source)
        mutate(metadata, random.Random(seed))
        start = time.monotonic()
        try:
            tokenizer = TextTokenizer.load(Path("model.gguf"), 300)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            if tokenizer is not None:
                ids = tokenizer.encode("hello <s>世界  abc<tool>")
                assert all(0 <= token_id < 300 for token_id in ids)
                assert isinstance(tokenizer.decode([*ids, 5], skip_special_tokens=True), str)
                assert isinstance(tokenizer.decode([*ids, 5], skip_special_tokens=False), str)
        slowest = max(slowest, time.monotonic() - start)
    assert count / 4 < len(messages) < count
    assert all(len(message) <= 2100 and message.isprintable() for message in messages)
    assert slowest < 10  # seconds; a good one takes a few milliseconds
