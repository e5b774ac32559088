"""GGUF files with the tokenizer of a checkpoint and nothing else, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
from gguf import GGUFWriter, TokenType
from gguf.vocab import SpecialVocab
from tokenizers import Tokenizer


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
