"""``TextTokenizer``: the checkpoint's tokenizer and its chat template; ``tokenizer.json`` decides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import ByteLevel

from hasten.core.errors import InvalidRequest
from hasten.text.byte_detokenizer import ByteDetokenizer, TokenBytes
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer
from hasten.text.panics import is_panic
from hasten.text.read_tokenizer import FILES, read_tokenizer
from hasten.text.tokenizer_config import TokenizerConfig


class TextTokenizer:
    """``chat_template`` and ``special_tokens`` are those of ``TokenizerConfig``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.special_tokens: Mapping[str, str] = special_tokens or {}
        self.chat_template = chat_template
        self._token_bytes: dict[bool, TokenBytes] = {}  # by skip_special_tokens

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> TextTokenizer | None:
        """Return None if the folder holds no tokenizer.

        Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
        """
        if not any((folder / name).exists() for name in FILES):
            return None
        config = TokenizerConfig.read(folder)
        tokenizer, special_tokens = read_tokenizer(folder, config, vocab_size)
        return cls(tokenizer, special_tokens=special_tokens, chat_template=config.chat_template)

    def detokenizer(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """Return an incremental detokenizer for one completion of this prompt."""
        if not isinstance(self._tokenizer.decoder, ByteLevel):
            return WindowDetokenizer(self._tokenizer, skip_special_tokens, prompt_token_ids)
        if skip_special_tokens not in self._token_bytes:
            self._token_bytes[skip_special_tokens] = TokenBytes(self._tokenizer, skip_special_tokens)
        return ByteDetokenizer(self._token_bytes[skip_special_tokens], prompt_token_ids)

    @property
    def eos_token_id(self) -> int | None:
        token = self.special_tokens.get("eos_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids. Raises ``InvalidRequest`` for a text that the vocabulary cannot express."""
        token_ids: list[int] = self._encode(self._tokenizer.encode_batch_fast, text, add_special_tokens).ids
        return token_ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of ``encode`` and, for each token, the offset in bytes of its end in the text.

        A character that is cut into several tokens counts for the first of them. Raises ``InvalidRequest``.
        """
        encoded = self._encode(self._tokenizer.encode_batch, text, True)
        byte_offsets = [0, *itertools.accumulate(len(character.encode()) for character in text)]
        ends = itertools.accumulate((end for _, end in encoded.offsets), max)
        return list(encoded.ids), [byte_offsets[end] for end in ends]

    @staticmethod
    def _encode(encode_batch: Callable[..., Sequence[Encoding]], text: str, add_special_tokens: bool) -> Encoding:
        # Unlike ``Tokenizer.encode``, the methods for batches let other threads run, which matters for long texts.
        try:
            return encode_batch([text], add_special_tokens=add_special_tokens)[0]
        except BaseException as error:  # the library raises plain ``Exception`` where there is no unknown token
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise InvalidRequest("the tokenizer of this checkpoint cannot encode the text", got=error) from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template: Any
    ) -> list[int]:
        """Return the token ids of the conversation, up to the start of the assistant's turn.

        Raises ``InvalidRequest``.
        """
        if not self.chat_template:
            raise InvalidRequest("this checkpoint has no chat template", remedy="Use generate with a prompt of your own")
        try:
            rendered = self._template_tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=False, **template
            )
        except Exception as error:  # a template can raise errors of any class
            raise InvalidRequest(
                "the chat template refuses these messages",
                got=str(error).rstrip("."),
                remedy='Pass a list of {"role": ..., "content": ...}',
            ) from error
        return self.encode(rendered, add_special_tokens=False)

    @functools.cached_property
    def _template_tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        make: Any = PreTrainedTokenizerFast
        return make(
            tokenizer_object=Tokenizer(self._tokenizer.model),
            chat_template=self.chat_template,
            model_specific_special_tokens=dict(self.special_tokens),
        )
