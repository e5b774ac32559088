"""``gguf_tokenizer``: the tokenizer and the chat template in the metadata of a GGUF file.

It is built from the metadata alone and equals the original ``tokenizer.json``. transformers' mapping is not used. That mapping adds
``<|endoftext|>`` to vocabularies without it, cuts control tokens such as ``<｜end▁of▁sentence｜>`` into pieces, normalizes no text,
ignores ``add_space_prefix``, and splits a text by GPT-2's pattern where it does not know the file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from hasten.core.errors import CheckpointError, UnsupportedModel, nearest, show
from hasten.text import sentencepiece_bpe
from hasten.text.byte_pair_rules import BYTE_PAIR_RULES, BytePairRules
from hasten.text.gguf_vocabulary import (
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GgufVocabulary,
    read_chat_template,
)

_AS_LLAMA_CPP = "Convert the original model again with llama.cpp's convert_hf_to_gguf.py"


class GgufTokenizer(NamedTuple):
    """``special_tokens`` and ``chat_template`` as in ``TokenizerConfig``."""

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | dict[str, str] | None


def gguf_tokenizer(metadata: Mapping[str, object], source: str) -> GgufTokenizer | None:
    """Return None if the file has no tokenizer. ``source`` is the name of the file in errors.

    Raises ``CheckpointError``, ``UnsupportedModel`` for a tokenizer that hasten does not know, or an error of tokenizers.
    """
    vocabulary = GgufVocabulary.read(metadata, source)
    if vocabulary is None:
        return None
    build = _byte_level if vocabulary.model == BYTE_LEVEL else _sentencepiece
    tokenizer, add_bos = build(vocabulary, source)
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != USER_DEFINED)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    special_tokens = {name: vocabulary.tokens[token_id] for name, token_id in vocabulary.special_ids.items()}
    if vocabulary.add_bos is not None:
        add_bos = vocabulary.add_bos
    for flag, name in ((vocabulary.add_bos, "bos"), (vocabulary.add_eos, "eos")):
        if flag and f"{name}_token" not in special_tokens:
            raise CheckpointError(
                f"tokenizer.ggml.add_{name}_token in {source} asks for a token that the file does not name",
                got=f"no tokenizer.ggml.{name}_token_id",
                remedy=_AS_LLAMA_CPP,
            )
    tokenizer.post_processor = sentencepiece_bpe.first_and_last(
        tokenizer,
        special_tokens.get("bos_token") if add_bos else None,
        special_tokens.get("eos_token") if vocabulary.add_eos else None,
    )
    return GgufTokenizer(tokenizer, special_tokens, read_chat_template(metadata, source))


def _byte_level(vocabulary: GgufVocabulary, source: str) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether a text begins with the bos token by default."""
    rules = _rules(vocabulary.pre, source)
    if vocabulary.merges is None:
        raise CheckpointError(f"tokenizer.ggml.merges in {source} is missing", remedy=_AS_LLAMA_CPP)
    tokenizer = Tokenizer(BPE(_ids(vocabulary), vocabulary.merges, ignore_merges=rules.ignore_merges))
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.add_bos


def _rules(pre: str | None, source: str) -> BytePairRules:
    if pre in (None, "default"):  # llama.cpp splits such texts in a way that no checkpoint was trained with
        raise UnsupportedModel(
            f"{source} does not say how its tokenizer splits a text into words",
            got=f"tokenizer.ggml.pre={show(pre)}",
            allowed=", ".join(sorted(BYTE_PAIR_RULES)),
            remedy=_AS_LLAMA_CPP,
        )
    if pre not in BYTE_PAIR_RULES:
        raise UnsupportedModel(
            f"the tokenizer in {source} splits a text in a way that hasten does not know",
            got=f"tokenizer.ggml.pre={show(pre)}",
            remedy=nearest(pre, BYTE_PAIR_RULES),
        )
    return BYTE_PAIR_RULES[pre]


def _sentencepiece(vocabulary: GgufVocabulary, source: str) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether a text begins with the bos token by default."""
    ids = _ids(vocabulary)
    unknown = vocabulary.special_ids.get("unk_token")
    if unknown is None and not all(f"<0x{byte:02X}>" in ids for byte in range(256)):
        raise CheckpointError(
            f"the vocabulary in {source} cannot express every text",
            got="no tokenizer.ggml.unknown_token_id, and not every byte",
            remedy=_AS_LLAMA_CPP,
        )
    merges = vocabulary.merges
    if merges is None:
        scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
        merges = sentencepiece_bpe.merges(
            {
                token: score
                for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
                if kind in (NORMAL, UNUSED)
            }
        )
    unk_token = None if unknown is None else vocabulary.tokens[unknown]
    tokenizer = Tokenizer(BPE(ids, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=True))
    prefix = vocabulary.add_space_prefix is not False
    space = normalizers.Replace(" ", sentencepiece_bpe.SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(sentencepiece_bpe.SPACE), space]) if prefix else space
    tokenizer.decoder = sentencepiece_bpe.decoder(strip_prefix=prefix)
    return tokenizer, True


def _ids(vocabulary: GgufVocabulary) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
