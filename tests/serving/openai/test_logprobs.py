"""Log-probabilities of tokens that are no characters, that are special, and that share a text."""

from __future__ import annotations

import json
import math

import pytest

from hasten.checkpoints.hub import resolve
from hasten.core.result import TokenLogprob
from hasten.serving.openai.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from hasten.serving.openai.token_strings import TokenStrings
from hasten.text.tokenizer import TextTokenizer

TEXT = "x = '🙂 é'\n"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    found = TextTokenizer.load(resolve("demo"), 8192)
    assert found is not None
    return found


def token(token_id: int, logprob: float = -1.0, top: tuple[tuple[int, float], ...] = (), rank: int = 1) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, rank, top)


def test_tokens_inside_a_character_are_bytes(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    entries = chat_logprobs([token(each) for each in ids], TokenStrings(tokenizer))["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == TEXT
    parts = [entry for entry in entries if entry["token"].startswith("bytes:")]
    assert parts and all(
        set(entry["token"].removeprefix("bytes:").replace("\\x", "")) <= set("0123456789abcdef") for entry in parts
    )
    assert len({entry["token"] for entry in parts}) == len({tuple(entry["bytes"]) for entry in parts})
    whole = [entry for entry in entries if entry not in parts]
    assert whole and all(entry["token"].encode() == bytes(entry["bytes"]) for entry in whole)


def test_offsets_are_the_lengths_of_what_is_before(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    end = tokenizer.special_token_ids["<|im_end|>"]
    writer = CompletionLogprobs(TokenStrings(tokenizer))
    found = writer.read([(each, token(each)) for each in [*ids[:2], end, *ids[2:]]])
    contents = [tokenizer.token_bytes(each) for each in [*ids[:2], *ids[2:]]]
    lengths = [len(b"".join(contents[:place]).decode(errors="ignore")) for place in range(len(contents))]
    assert found["text_offset"] == [*lengths[:2], lengths[2], *lengths[2:]]
    assert writer.read([(ids[0], token(ids[0]))])["text_offset"] == [len(TEXT)]
    shown = CompletionLogprobs(TokenStrings(tokenizer, skip_special_tokens=False)).read([(end, None), (5, token(5))])
    assert shown["text_offset"] == [0, len("<|im_end|>")]
    verbatim = CompletionLogprobs(TokenStrings(tokenizer)).read([(end, None), (end, token(end)), (5, token(5))], 1)
    assert verbatim["text_offset"] == [0, len("<|im_end|>"), len("<|im_end|>")]


def test_of_tokens_with_the_same_text_the_most_likely_counts() -> None:
    strings = TokenStrings(None)
    found = CompletionLogprobs(strings).read([(7, token(7, -4.0, top=((8, -1.0), (9, -2.0)), rank=5))])
    assert found["top_logprobs"] == [{"token_id:8": -1.0, "token_id:9": -2.0, "token_id:7": -4.0}]
    strings._texts.update({8: "a", 9: "a", 7: "a"})
    found = CompletionLogprobs(strings).read([(7, token(7, -4.0, top=((8, -1.0), (9, -2.0)), rank=5))])
    assert (found["top_logprobs"], found["tokens"]) == ([{"a": -1.0}], ["a"])


def test_minus_infinity_is_a_number_of_json(tokenizer: TextTokenizer) -> None:
    impossible = token(7, -math.inf, top=((8, -1.0), (9, -math.inf)))
    strings = TokenStrings(tokenizer)
    for found in (
        CompletionLogprobs(strings).read([(7, impossible)]),
        chat_logprobs([impossible], strings),
        prompt_logprobs([impossible], strings),
    ):
        text = json.dumps(found, allow_nan=False)
        assert "-9999.0" in text and "-1.0" in text


def test_prompts_have_ranks(tokenizer: TextTokenizer) -> None:
    found = prompt_logprobs(
        [None, token(7, -4.0, top=((8, -1.0), (9, -2.0)), rank=5), token(8, -1.0, top=((8, -1.0),))], TokenStrings(tokenizer)
    )
    assert found[0] is None and found[1] is not None
    assert {token_id: entry["rank"] for token_id, entry in found[1].items()} == {"8": 1, "9": 2, "7": 5}
    assert found[2] == {"8": {"logprob": -1.0, "rank": 1, "decoded_token": TokenStrings(tokenizer).text(8)}}


def test_a_model_without_a_tokenizer_has_ids() -> None:
    strings = TokenStrings(None)
    assert (strings.text(5), strings.bytes_of(5), strings.shown_bytes(5)) == ("token_id:5", None, b"")
