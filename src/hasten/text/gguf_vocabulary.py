"""``GgufVocabulary``: the tokenizer's metadata of a GGUF file, with every type, length and id checked.

It builds nothing. The keys are described in ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.checkpoints.gguf.token_ids import names_no_token
from hasten.core.errors import CheckpointError, UnsupportedModel, show
from hasten.text.tokenizer_config import MAX_TEMPLATE_BYTES

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
NO_TOKENIZER = ("none", "no_vocab")  # the model takes token ids
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types; 0 is undefined
MAX_TOKEN_LENGTH = 4096  # characters; the longest of well-known vocabularies have a few hundred
_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # ggml's spelling
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
    "eot_token": "eot_token_id",
    "eom_token": "eom_token_id",
}
_SENTENCEPIECE_IDS = {"unk_token": (0, UNKNOWN), "bos_token": (1, CONTROL), "eos_token": (2, CONTROL)}  # where the file has none
_AGAIN = "Download the file again, or convert the original model again with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """``tokens`` are distinct texts by id, ``types`` their types.

    ``merges`` and ``scores`` are None if the file has none.
    ``special_ids``: the ids of ``bos_token`` and the like, those that the file names. The flags are None where it is silent.
    """

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[tuple[str, str]] | None
    special_ids: Mapping[str, int]
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None

    @classmethod
    def read(cls, metadata: Mapping[str, object], source: str) -> GgufVocabulary | None:
        """Return None if the file has no tokenizer. ``source`` is the name of the file in errors.

        Raises ``CheckpointError``, and ``UnsupportedModel`` for a tokenizer of another kind.
        """
        fields = _Fields(metadata, source)
        model = fields.text("model")
        if model in NO_TOKENIZER or not any(key.startswith(_PREFIX) for key in metadata):
            return None
        if model is None:
            raise fields.wrong("model", "is missing")
        if model not in (BYTE_LEVEL, SENTENCEPIECE):
            raise UnsupportedModel(
                f"the tokenizer in {source} is of a kind that hasten does not know",
                got=f"{_PREFIX}model={show(model)}",
                allowed=f"{BYTE_LEVEL} (byte-level BPE) and {SENTENCEPIECE} (SentencePiece BPE)",
                remedy="Use the original checkpoint, whose tokenizer.json can be read",
            )
        tokens = fields.tokens()
        types = fields.types(len(tokens))
        special_ids = fields.special_ids(len(tokens))
        if model == SENTENCEPIECE:
            for name, (token_id, kind) in _SENTENCEPIECE_IDS.items():
                if not fields.has(_IDS[name]) and types[token_id : token_id + 1] == [kind]:
                    special_ids[name] = token_id
        return cls(
            model,
            fields.text("pre"),
            tokens,
            types,
            fields.scores(len(tokens)),
            fields.merges(tokens),
            special_ids,
            fields.flag("add_bos_token"),
            fields.flag("add_eos_token"),
            fields.flag("add_space_prefix"),
        )


def read_chat_template(metadata: Mapping[str, object], source: str) -> str | dict[str, str] | None:
    """Return the source of the chat template, or the sources by name where the file has several.

    Raises ``CheckpointError``.
    """
    templates = {}
    for key, value in metadata.items():
        if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
            continue
        if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
            raise CheckpointError(
                f"{show(key)} in {source} is not a chat template",
                got=show(value),
                allowed=f"a text of at most {MAX_TEMPLATE_BYTES:,} characters",
                remedy=_AGAIN,
            )
        if value:
            templates[key.removeprefix(_TEMPLATE).removeprefix(".") or "default"] = value
    return templates["default"] if list(templates) == ["default"] else templates or None


@dataclass(frozen=True, slots=True)
class _Fields:
    """The values under ``tokenizer.ggml.``, checked one by one. The methods raise ``CheckpointError``."""

    metadata: Mapping[str, object]
    source: str

    def has(self, key: str) -> bool:
        return _PREFIX + key in self.metadata

    def wrong(self, key: str, what: str, got: object = None, allowed: str | None = None) -> CheckpointError:
        return CheckpointError(f"{_PREFIX}{key} in {self.source} {what}", got=got, allowed=allowed, remedy=_AGAIN)

    def text(self, key: str) -> str | None:
        value = self.metadata.get(_PREFIX + key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "is not a text", show(value))
        return value

    def flag(self, key: str) -> bool | None:
        value = self.metadata.get(_PREFIX + key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "is not true or false", show(value))
        return value

    def items(self, key: str, kinds: tuple[type, ...], length: int | None = None) -> list[Any] | None:
        """Return a list whose items are exactly of these classes."""
        value = self.metadata.get(_PREFIX + key)
        if value is None:
            return None
        if not isinstance(value, list) or not set(map(type, value)) <= set(kinds):
            raise self.wrong(key, f"is not a list of {' or '.join(kind.__name__ for kind in kinds)} values", show(value))
        if length is not None and len(value) != length:
            raise self.wrong(key, "has another length than the list of tokens", f"{len(value):,} and {length:,}")
        return value

    def tokens(self) -> list[str]:
        tokens: list[str] = self.items("tokens", (str,)) or []
        if not tokens:
            raise self.wrong("tokens", "is missing or empty")
        if len(set(tokens)) < len(tokens):
            raise self.wrong("tokens", "has the same token twice", show(Counter(tokens).most_common(1)[0][0]))
        longest = max(tokens, key=len)
        if len(longest) > MAX_TOKEN_LENGTH:
            raise self.wrong("tokens", f"has a token of {len(longest):,} characters", show(longest), f"up to {MAX_TOKEN_LENGTH:,}")
        return tokens

    def types(self, length: int) -> list[int]:
        types = self.items("token_type", (int,), length) or [NORMAL] * length
        if unknown := set(types) - set(range(BYTE + 1)):
            raise self.wrong("token_type", "has an unknown type", show(min(unknown)), f"0 to {BYTE}")
        return types

    def scores(self, length: int) -> list[float] | None:
        scores = self.items("scores", (float, int), length)
        if scores is not None and any(map(math.isnan, scores)):
            raise self.wrong("scores", "has a value that is not a number")
        return scores

    def merges(self, tokens: list[str]) -> list[tuple[str, str]] | None:
        """Return pairs of tokens whose concatenation is a token."""
        lines = self.items("merges", (str,))
        if lines is None:
            return None
        known = set(tokens)
        merges = []
        for line in lines:
            left, _, right = line[1:].partition(" ")  # the left token may itself begin with a space
            left = line[:1] + left
            if left not in known or right not in known or left + right not in known:
                raise self.wrong("merges", "has a pair that makes no token", show(line), "two tokens with a space between them")
            merges.append((left, right))
        if len(set(merges)) < len(merges):
            raise self.wrong("merges", "has the same pair twice")
        return merges

    def special_ids(self, num_tokens: int) -> dict[str, int]:
        ids = {}
        for name, key in _IDS.items():
            value = self.metadata.get(_PREFIX + key)
            if names_no_token(value):
                continue
            if type(value) is not int or not 0 <= value < num_tokens:
                raise self.wrong(key, "is not the id of a token", show(value), f"0 to {num_tokens - 1:,}")
            ids[name] = value
        return ids
