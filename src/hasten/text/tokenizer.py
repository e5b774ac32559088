"""``TextTokenizer``: the checkpoint's tokenizer and chat template, on top of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.checkpoints.reader import check_tokenizer_size
from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.text.byte_detokenizer import ByteDetokenizer, TokenBytes
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class TextTokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_bytes: dict[bool, TokenBytes] = {}  # by skip_special_tokens

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> TextTokenizer | None:
        """Return None if the folder holds no tokenizer.

        Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
        """
        if not any((folder / name).exists() for name in _FILES):
            return None
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a broken file makes the libraries raise errors of any class
            raise CheckpointError(
                f"the tokenizer in {folder} cannot be read", got=f"{type(error).__name__}: {error}", remedy="Copy it again"
            ) from error
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise CheckpointError(
                f"the tokenizer in {folder} has no fast form",
                got=type(tokenizer).__name__,
                allowed="tokenizers that can be saved as tokenizer.json",
                remedy="Convert it with transformers and save it beside the weights",
            )
        check_tokenizer_size(len(tokenizer), vocab_size)
        return cls(tokenizer)

    def detokenizer(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """Return an incremental detokenizer for one completion of this prompt."""
        from tokenizers.decoders import ByteLevel

        backend = self._tokenizer.backend_tokenizer
        if not isinstance(backend.decoder, ByteLevel):
            return WindowDetokenizer(backend, skip_special_tokens, prompt_token_ids)
        if skip_special_tokens not in self._token_bytes:
            self._token_bytes[skip_special_tokens] = TokenBytes(backend, skip_special_tokens)
        return ByteDetokenizer(self._token_bytes[skip_special_tokens], prompt_token_ids)

    @property
    def eos_token_id(self) -> int | None:
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return token_ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of ``encode`` and, for each token, the offset in bytes of its end in the text.

        A character that is cut into several tokens counts for the first of them.
        """
        encoded = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        byte_offsets = [0, *itertools.accumulate(len(character.encode()) for character in text)]
        ends = itertools.accumulate((end for _, end in encoded["offset_mapping"]), max)
        return list(encoded["input_ids"]), [byte_offsets[end] for end in ends]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        return text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template: Any
    ) -> list[int]:
        """Return the token ids of the conversation, up to the start of the assistant's turn.

        Raises ``InvalidRequest``.
        """
        if not self._tokenizer.chat_template:
            raise InvalidRequest("this checkpoint has no chat template", remedy="Use generate with a prompt of your own")
        try:
            rendered = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=False, **template
            )
        except Exception as error:  # a template can raise errors of any class
            raise InvalidRequest(
                "the chat template refuses these messages",
                got=str(error).rstrip("."),
                remedy='Pass a list of {"role": ..., "content": ...}',
            ) from error
        return self.encode(rendered, add_special_tokens=False)
