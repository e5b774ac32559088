"""``TextTokenizer``: the checkpoint's tokenizer, as its ``tokenizer.json`` says, and its chat template."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hasten.checkpoints.reader import check_tokenizer_size
from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.text.byte_detokenizer import ByteDetokenizer, TokenBytes
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer
from hasten.text.tokenizer_config import TokenizerConfig

FILE = "tokenizer.json"
_OTHER_FILES = ("tokenizer.model", "vocab.json", "tokenizer_config.json")  # transformers makes a tokenizer.json from these


class TextTokenizer:
    """``chat_template`` and ``special_tokens`` are those of ``TokenizerConfig``."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        # Files may carry the settings of a training run. A saved truncation would cut prompts without a word.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens: Mapping[str, str] = special_tokens or {}
        self.chat_template = chat_template
        self._token_bytes: dict[bool, TokenBytes] = {}  # by skip_special_tokens

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> TextTokenizer | None:
        """Return None if the folder holds no tokenizer.

        Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
        """
        if not any((folder / name).exists() for name in (FILE, *_OTHER_FILES)):
            return None
        config = TokenizerConfig.read(folder)
        tokenizer = _read(folder) if (folder / FILE).exists() else _convert(folder)
        check_tokenizer_size(tokenizer.get_vocab_size(), vocab_size)
        return cls(tokenizer, special_tokens=config.special_tokens, chat_template=config.chat_template)

    def detokenizer(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """Return an incremental detokenizer for one completion of this prompt."""
        from tokenizers.decoders import ByteLevel

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
        # Unlike ``encode``, the call for batches lets other threads run, which matters with long texts.
        token_ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return token_ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of ``encode`` and, for each token, the offset in bytes of its end in the text.

        A character that is cut into several tokens counts for the first of them.
        """
        encoded = self._tokenizer.encode_batch([text])[0]
        byte_offsets = [0, *itertools.accumulate(len(character.encode()) for character in text)]
        ends = itertools.accumulate((end for _, end in encoded.offsets), max)
        return list(encoded.ids), [byte_offsets[end] for end in ends]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    @functools.cached_property
    def max_chars_per_token(self) -> int:
        """The most characters of a text that one token stands for, unless it is an unknown token."""
        longest = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        # Unicode normalisation makes one character of up to four.
        return longest if self._tokenizer.normalizer is None else 4 * longest

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template: Any) -> str:
        """Return the conversation with its special tokens, up to the start of the assistant's turn.

        Raises ``InvalidRequest``.
        """
        if not self.chat_template:
            raise InvalidRequest("this checkpoint has no chat template", remedy="Use generate with a prompt of your own")
        try:
            text: str = self._template_tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=True, tokenize=False, **template
            )
        except Exception as error:  # a template can raise errors of any class
            raise InvalidRequest(
                "the chat template refuses these messages",
                got=str(error).rstrip("."),
                remedy='Pass a list of {"role": ..., "content": ...}',
            ) from error
        return text

    @functools.cached_property
    def _template_tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        make: Any = PreTrainedTokenizerFast
        return make(
            tokenizer_object=Tokenizer(self._tokenizer.model),
            chat_template=self.chat_template,
            model_specific_special_tokens=dict(self.special_tokens),
        )


def _read(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises plain ``Exception``
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read", got=f"{type(error).__name__}: {error}", remedy="Copy it again"
        ) from error


def _convert(folder: Path) -> Tokenizer:
    """Return the tokenizer that transformers makes from files of other formats."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file makes the libraries raise errors of any class
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read", got=f"{type(error).__name__}: {error}", remedy="Copy it again"
        ) from error
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no fast form",
            got=type(tokenizer).__name__,
            allowed="tokenizers that can be saved as tokenizer.json",
            remedy="Convert it with transformers and save it beside the weights",
        )
    return backend
