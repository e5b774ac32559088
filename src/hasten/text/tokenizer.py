"""``TextTokenizer``: the checkpoint's tokenizer and its chat template; ``tokenizer.json`` decides."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import ByteLevel

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.regular_file import has_file
from hasten.core.errors import InvalidRequest
from hasten.sampling.bad_word_set import BadWordSet
from hasten.sampling.token_texts import TokenTexts
from hasten.text.byte_detokenizer import ByteDetokenizer, TokenBytes
from hasten.text.chat_template import ChatTemplate
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer
from hasten.text.panics import is_panic
from hasten.text.read_tokenizer import FILES, read_gguf_tokenizer, read_tokenizer
from hasten.text.tokenizer_config import TokenizerConfig
from hasten.text.vocabulary_bytes import vocabulary_bytes

if TYPE_CHECKING:
    from hasten.checkpoints.reader import Checkpoint

_BEFORE_FRAGMENTS = ("\n", "x\n", "x", "0")  # texts that most tokenizers do not join with what follows
_MAX_BAD_WORD_BYTES = 256 << 20  # of sets that are kept; one has at most 8 bytes per token of the vocabulary, most have a few KB


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
        self._template = ChatTemplate(chat_template, self.special_tokens) if chat_template else None
        self._token_bytes: dict[bool, TokenBytes] = {}  # by skip_special_tokens
        self._token_texts: dict[bool, TokenTexts] = {}  # by skip_special_tokens
        self._bad_words: dict[tuple[tuple[str, ...], bool], BadWordSet] = {}
        self._bad_words_mutex = threading.Lock()  # tokenizing threads and the engine's write to the cache

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> TextTokenizer | None:
        """Return None if the folder, or the GGUF file, holds no tokenizer.

        Raises ``CheckpointError`` if the tokenizer is broken or larger than the embedding.
        """
        if is_gguf(folder):
            return cls._of_gguf(GgufFile.open(folder), vocab_size)
        if not any(has_file(folder / name) for name in FILES):
            return None
        config = TokenizerConfig.read(folder)
        tokenizer, special_tokens = read_tokenizer(folder, config, vocab_size)
        return cls(tokenizer, special_tokens=special_tokens, chat_template=config.chat_template)

    @classmethod
    def of(cls, checkpoint: Checkpoint, vocab_size: int) -> TextTokenizer | None:
        """Return the tokenizer of an open checkpoint, as ``load`` does.

        The header of a GGUF file is not read again.
        """
        file = checkpoint.gguf
        return cls.load(checkpoint.folder, vocab_size) if file is None else cls._of_gguf(file, vocab_size)

    @classmethod
    def _of_gguf(cls, file: GgufFile, vocab_size: int) -> TextTokenizer | None:
        found = read_gguf_tokenizer(file, vocab_size)
        return found and cls(found.tokenizer, special_tokens=found.special_tokens, chat_template=found.chat_template)

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

    def encode_open(self, text: str) -> list[int]:
        """Return the token ids of ``encode`` without the special tokens that some tokenizers put at the end."""
        token_ids = self.encode(text)
        if not self._tokenizer.num_special_tokens_to_add(False):
            return token_ids
        plain = self.encode(text, add_special_tokens=False)
        num_special = len(token_ids) - len(plain)
        start = next((i for i in range(num_special, -1, -1) if token_ids[i : i + len(plain)] == plain), num_special)
        return token_ids[: start + len(plain)]

    def encode_fragment(self, text: str) -> list[int]:
        """Return the token ids of a text inside another: without special tokens, or a space before it."""
        for before in _BEFORE_FRAGMENTS:
            with suppress(InvalidRequest):  # the vocabulary cannot express it
                head = self.encode(before, add_special_tokens=False)
                token_ids = self.encode(before + text, add_special_tokens=False)
                if head and token_ids[: len(head)] == head:
                    return token_ids[len(head) :]
        return self.encode(text, add_special_tokens=False)

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

    def ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary writes them, such as "Ġthe".

        An id without a token has an empty text.
        """
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text, special tokens too; none for an id without a token.

        The first call may take a second, for vocabularies that are not of bytes.
        """
        if isinstance(self._tokenizer.decoder, ByteLevel):
            if False not in self._token_bytes:
                self._token_bytes[False] = TokenBytes(self._tokenizer, False)
            return self._token_bytes[False][token_id]
        pieces = self._vocabulary_bytes
        return pieces[token_id] if token_id < len(pieces) else b""

    @functools.cached_property
    def _vocabulary_bytes(self) -> list[bytes]:
        return vocabulary_bytes(self._tokenizer, False)

    def to_json(self) -> str:
        """Return the tokenizer as a ``tokenizer.json`` has it."""
        return str(self._tokenizer.to_str())

    @functools.cached_property
    def max_chars_per_token(self) -> int:
        """The most characters of a text that one token stands for, unless it is an unknown token."""
        longest = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        # Unicode normalisation makes one character of up to four.
        return longest if self._tokenizer.normalizer is None else 4 * longest

    def bad_words(self, words: tuple[str, ...], skip_special_tokens: bool) -> BadWordSet:
        """Return the set of these words, which takes milliseconds to make and is kept for further calls."""
        found = self._bad_words.get((words, skip_special_tokens))
        if found is None:
            if skip_special_tokens not in self._token_texts:
                self._token_texts[skip_special_tokens] = TokenTexts(vocabulary_bytes(self._tokenizer, skip_special_tokens))
            found = BadWordSet(self._token_texts[skip_special_tokens], words)
            with self._bad_words_mutex:
                self._bad_words[words, skip_special_tokens] = found
                while sum(each.num_bytes for each in self._bad_words.values()) > _MAX_BAD_WORD_BYTES and len(self._bad_words) > 1:
                    del self._bad_words[next(iter(self._bad_words))]  # the oldest
        return found

    @functools.cached_property
    def special_token_ids(self) -> Mapping[str, int]:
        """The special tokens, which decoding can skip, by their text."""
        return {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def chat_template_source(self, *, has_tools: bool) -> str | None:
        """Return the text of the chat template; None without one. Raises as ``ChatTemplate.source``."""
        return None if self._template is None else self._template.source(has_tools=has_tools)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template: Any) -> str:
        """Return the text of the conversation, up to the start of the assistant's turn.

        ``template`` are the arguments of ``ChatTemplate.render``. Raises ``InvalidRequest``.
        """
        if self._template is None:
            raise InvalidRequest("this checkpoint has no chat template", remedy="Use generate with a prompt of your own")
        return self._template.render(messages, tools=tools, **template)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template: Any
    ) -> list[int]:
        """Return the token ids of ``render_chat``."""
        return self.encode(self.render_chat(messages, tools=tools, **template), add_special_tokens=False)
