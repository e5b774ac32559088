"""``vocabulary_bytes``: the bytes that each token of a vocabulary adds to a text."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from hasten.text.byte_detokenizer import TokenBytes
from hasten.text.byte_run import byte_of


def vocabulary_bytes(tokenizer: Tokenizer, skip_special_tokens: bool) -> list[bytes]:
    """Return the bytes of each token inside a text, by token id.

    There are none for ids without a token and for special tokens to skip. Where the text of a token depends on its neighbours, it
    is the text after a word.
    """
    names = {token_id: name for name, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    num_ids = max(names, default=-1) + 1
    if isinstance(tokenizer.decoder, ByteLevel):
        token_bytes = TokenBytes(tokenizer, skip_special_tokens=False)
        pieces = [token_bytes[token_id] for token_id in range(num_ids)]
    else:
        pieces = _decoded_pieces(tokenizer, num_ids)
        byte_tokens = {token_id: byte for token_id, name in names.items() if (byte := byte_of(name)) is not None}
        texts = tokenizer.decode_batch([[token_id] for token_id in byte_tokens], skip_special_tokens=False)
        for (token_id, byte), text in zip(byte_tokens.items(), texts, strict=True):
            if text != names[token_id]:  # the decoder knows byte tokens
                pieces[token_id] = bytes((byte,))
    if skip_special_tokens:
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            if token.special:
                pieces[token_id] = b""
    return pieces


def _decoded_pieces(tokenizer: Tokenizer, num_ids: int) -> list[bytes]:
    """Return what the tokens add after a word: the first token whose text is letters or digits."""

    def decode(token_id: int) -> str:
        text: str = tokenizer.decode([token_id], skip_special_tokens=True)
        return text

    word = next((i for i in range(num_ids) if decode(i).isascii() and decode(i).isalnum()), None)
    before, word_text = ([], "") if word is None else ([word], decode(word))
    texts = tokenizer.decode_batch([[*before, token_id] for token_id in range(num_ids)], skip_special_tokens=False)
    return [
        (text.removeprefix(word_text) if text.startswith(word_text) else tokenizer.decode([i], skip_special_tokens=False)).encode()
        for i, text in enumerate(texts)
    ]
