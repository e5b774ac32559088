"""Texts of tokens join to the generated text, with vocabularies of bytes and of pieces."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from hasten.core.result import TokenLogprob
from hasten.serving.tgi.token_reader import TokenReader
from hasten.text.tokenizer import TextTokenizer

TEXT = "the tower and the river, the other tower; héé 🙂 中文"


@pytest.fixture(scope="module")
def pieces() -> TextTokenizer:
    """Return a tokenizer in the manner of Llama 2: a space begins a piece, and rare characters are byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special: list[Any] = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        ["the tower and the river"] * 9, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer = Tokenizer.from_str(tokenizer.to_str().replace('"special":true', '"special":false'))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return TextTokenizer(tokenizer, special_tokens={"eos_token": "</s>"})


def read_all(tokenizer: TextTokenizer, prompt: str, token_ids: list[int], text: str) -> list[dict[str, Any]]:
    reader = TokenReader(tokenizer, tokenizer.encode(prompt))
    last = len(token_ids) - 1
    return [reader.read(token_id, -0.5, text if i == last else None) for i, token_id in enumerate(token_ids)]


def test_the_first_word_keeps_its_space(pieces: TextTokenizer) -> None:
    token_ids = pieces.encode(TEXT)
    tokens = read_all(pieces, "the", token_ids, " " + TEXT)
    assert "".join(token["text"] for token in tokens) == " " + TEXT
    assert tokens[0]["text"].startswith(" ")
    assert [token["id"] for token in tokens] == token_ids


def test_a_character_comes_with_the_token_that_completes_it(pieces: TextTokenizer) -> None:
    token_ids = pieces.encode("🙂 a")
    tokens = [token["text"] for token in read_all(pieces, "the", token_ids, " 🙂 a")]
    assert tokens[-6:] == ["", "", "", "🙂", " ", "a"]
    assert "".join(tokens) == " 🙂 a"


def test_a_special_token_has_its_own_text_and_adds_none(pieces: TextTokenizer) -> None:
    end = pieces.special_token_ids["</s>"]
    tokens = read_all(pieces, "the", [*pieces.encode("tower"), end], " tower")
    assert tokens[-1] == {"id": end, "text": "</s>", "logprob": -0.5, "special": True}
    assert "".join(token["text"] for token in tokens if not token["special"]) == " tower"


def test_a_stop_string_cuts_the_last_token(pieces: TextTokenizer) -> None:
    token_ids = pieces.encode("the tower")
    tokens = read_all(pieces, "and", token_ids, " the tow")
    assert "".join(token["text"] for token in tokens) == " the tow"


def test_alternatives_are_decoded_alone_and_special_ones_marked(pieces: TextTokenizer) -> None:
    end, word = pieces.special_token_ids["</s>"], pieces.encode("tower")[-1]
    logprob = TokenLogprob(word, -0.1, 1, top=((word, -0.1), (end, float("-inf"))))
    found = TokenReader(pieces, []).alternatives(logprob)
    assert [(each["id"], each["logprob"], each["special"]) for each in found] == [(word, -0.1, False), (end, -9999.0, True)]
    assert [each["text"] for each in found] == [pieces.decode([word], skip_special_tokens=False), "</s>"]
