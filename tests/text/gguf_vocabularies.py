"""GGUF files, and their metadata, with the tokenizer of a checkpoint as llama.cpp's converter writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType
from gguf.vocab import SpecialVocab
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


def looks_special(token: str) -> bool:
    """The converter makes control tokens of such tokens, whatever ``tokenizer.json`` says of them."""
    return (token[:2], token[-2:]) in (("<|", "|>"), ("<｜", "｜>")) or token in ("<pad>", "<mask>")


def byte_level_tokens(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[TokenType]]:
    """Return ``size`` tokens and their types. Ids without a token become padding."""
    names = {token_id: token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    types = [
        TokenType.UNUSED
        if token_id not in names
        else TokenType.NORMAL
        if token_id not in added
        else TokenType.CONTROL
        if added[token_id].special or looks_special(names[token_id])
        else TokenType.USER_DEFINED
        for token_id in range(size)
    ]
    return [names.get(token_id, f"[PAD{token_id}]") for token_id in range(size)], types


def write_byte_level(folder: Path, pre: str, architecture: str = "llama") -> Path:
    """Write ``model.gguf`` beside the ``tokenizer.json`` of this folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens, types = byte_level_tokens(tokenizer, tokenizer.get_vocab_size(with_added_tokens=True) + 3)
    special = SpecialVocab(folder, load_merges=True, n_vocab=len(tokens))
    return write(folder, "gpt2", tokens, types, special, pre=pre, architecture=architecture)


def write_sentencepiece(folder: Path, *, add_space_prefix: bool | None = None) -> Path:
    """Write ``model.gguf`` beside the ``tokenizer.model`` of this folder. Pieces of the user are found by their text."""
    vocabulary = gguf.vocab.SentencePieceVocab(folder)
    tokens, scores, types = [], [], []
    for token_id, (token, score, kind) in enumerate(vocabulary.all_tokens()):
        text = bytes(token).decode()
        if token_id < vocabulary.vocab_size_base and vocabulary.sentencepiece_tokenizer.GetScore(token_id) == 0 and token_id > 2:
            own = kind == TokenType.NORMAL and text in ("▁▁", "<|x|>")
            text, kind, score = (text.replace("▁", " "), TokenType.USER_DEFINED, -1000.0) if own else (text, kind, score)
        tokens.append(text)
        scores.append(score)
        types.append(kind)
    special = SpecialVocab(folder, n_vocab=len(tokens))
    return write(folder, "llama", tokens, types, special, scores=scores, add_space_prefix=add_space_prefix)


def write(
    folder: Path,
    model: str,
    tokens: Sequence[str],
    types: Sequence[TokenType],
    special: SpecialVocab | None = None,
    *,
    pre: str = "default",
    scores: Sequence[float] | None = None,
    add_space_prefix: bool | None = None,
    architecture: str = "llama",
) -> Path:
    file = folder / "model.gguf"
    writer = GGUFWriter(file, architecture)
    add_tokenizer(writer, model, tokens, types, special, pre=pre, scores=scores, add_space_prefix=add_space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_tokenizer(
    writer: GGUFWriter,
    model: str,
    tokens: Sequence[str],
    types: Sequence[TokenType],
    special: SpecialVocab | None,
    *,
    pre: str,
    scores: Sequence[float] | None = None,
    add_space_prefix: bool | None = None,
) -> None:
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    if scores is not None:
        writer.add_token_scores(list(scores))
    if add_space_prefix is not None:
        writer.add_add_space_prefix(add_space_prefix)
    if special is not None:
        special.add_to_gguf(writer, quiet=True)


def byte_metadata(pre: str = "gpt-2", **values: Any) -> dict[str, Any]:
    letters = sorted(ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *letters, "he", "hello", "<tool>", "<pad>", "[PAD262]"]
    types = [3, 3, *[1] * len(letters), 1, 1, 4, 3, 5]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return changed(metadata, **values)


def sentencepiece_metadata(**values: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", "a", "b", "c", "▁a", "bc", "ab", "▁ab"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, *letters],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(letters)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -3.0, -9.0, -4.0, -5.0],
    }
    return changed(metadata, **values)


def changed(metadata: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the metadata with other values under ``tokenizer.ggml.``; None removes one."""
    result = metadata | {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    return {key: value for key, value in result.items() if value is not None}


def add_letters(writer: GGUFWriter, num_tokens: int = 101) -> None:
    """Add a byte-level tokenizer of ``num_tokens`` tokens: control tokens, printable ASCII, the space and one merge."""
    tokens = ["<pad>", "<s>", "</s>", "Ġ", *map(chr, range(ord("!"), ord("~") + 1)), "ab"]
    tokens += [f"[PAD{token_id}]" for token_id in range(len(tokens), num_tokens)]
    types = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (num_tokens - 3)
    add_tokenizer(writer, "gpt2", tokens, types, None, pre="gpt-2")
    writer.add_token_merges(["a b"])
