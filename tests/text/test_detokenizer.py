"""Pieces of text against the decoded whole, with real tokenizers trained here: byte-level, byte-fallback and WordPiece.

Of the byte-level one twice: "byte-level" through windows of tokens, "bytes" through the bytes of each.
"""

import inspect
import json
import os.path
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hasten.text import byte_detokenizer, detokenizer
from hasten.text.byte_detokenizer import ByteDetokenizer
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer
from hasten.text.tokenizer import TextTokenizer

KINDS = ("bytes", "byte-level", "byte-fallback", "metaspace", "wordpiece")
REPLACEMENT = "\ufffd"
SPECIAL = ("<s>", "</s>", "<|end of turn|>")
TEXT = (
    "the cat sat on the mat, and the other cat sat with the dog. 这是一个测试,我们说中文。今天天气很好。 naïve café été "
    "def hello(name):\n    return f'hello {name}'\n" * 3
)
SAMPLES = (
    "The cat, on the mat.",
    "  two  spaces\n\n\tand a tab",
    "我们今天说中文,好吗?",
    "family 👨‍👩‍👧‍👦 flag 🇨🇳 thumbs 👍🏽 heart ❤️ end",
    "a\u0301e\u0308 zalgo z\u0335\u0321\u033b naïve",
    "한국어 العربية हिन्दी",
    "𝒳 and � itself �� twice",
    "say two words <think>",
)


def tokenizer(kind: str) -> Tokenizer:
    return trained("byte-level" if kind == "bytes" else kind)


@cache
def trained(kind: str) -> Tokenizer:
    special = [AddedToken(token, special=True) for token in SPECIAL]
    if kind == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special, show_progress=False
        )
        made.train_from_iterator([TEXT], trainer)
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.train_from_iterator(
            [TEXT], trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", *special], show_progress=False)
        )
    else:
        made = sentencepiece(kind == "byte-fallback", special)
    made.add_tokens(["<think>", " two words "])
    return made


def sentencepiece(byte_fallback: bool, special: list[AddedToken]) -> Tokenizer:
    """As in Llama 2 (the space is ``▁``, unknown characters are byte tokens), or with a Metaspace decoder and no byte tokens."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    bytes_256 = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    if byte_fallback:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", *special, *bytes_256, REPLACEMENT], show_progress=False, limit_alphabet=60
    )
    made.train_from_iterator([TEXT], trainer)
    # The trainer marks the byte tokens as special; here they are plain members of the vocabulary, as in Llama 2.
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in (*SPECIAL, "<unk>")]
    return Tokenizer.from_str(json.dumps(state))


def answer_text(kind: str, prompt: Sequence[int], answer: Sequence[int], skip: bool) -> str:
    """decode(prompt + answer) without what it shares with decode(prompt)."""
    before = tokenizer(kind).decode(list(prompt), skip_special_tokens=skip)
    whole = tokenizer(kind).decode([*prompt, *answer], skip_special_tokens=skip)
    return whole[len(os.path.commonprefix([before, whole])) :]  # noqa: RUF071


NAMES = {**vars(detokenizer), **vars(byte_detokenizer)}


def detokenizer_of(kind: str, skip: bool, prompt: Sequence[int] = (), names: Mapping[str, Any] = NAMES) -> Detokenizer:
    if kind == "bytes":
        return cast(Detokenizer, names["ByteDetokenizer"](names["TokenBytes"](tokenizer(kind), skip), prompt))
    return cast(Detokenizer, names["WindowDetokenizer"](tokenizer(kind), skip, prompt))


def pieces_of(kind: str, prompt: Sequence[int], answer: Sequence[int], skip: bool, names: Mapping[str, Any] = NAMES) -> list[str]:
    stream = detokenizer_of(kind, skip, prompt, names)
    return [*(stream.push(token) for token in answer), stream.flush()]


@cache
def odd_tokens(kind: str) -> list[int]:
    """Tokens that are no whole characters by themselves."""
    made = tokenizer(kind)
    return [token for token in range(made.get_vocab_size()) if REPLACEMENT in made.decode([token])] or [0]


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[int], int, bool]:
    """(kind, tokens, how many of them are the prompt, skip special tokens): texts, single tokens and ids without a token."""
    kind = draw(st.sampled_from(KINDS))
    size = tokenizer(kind).get_vocab_size()
    text = st.one_of(st.sampled_from(SAMPLES), st.text(max_size=12)).map(lambda t: tokenizer(kind).encode(t).ids)
    single = st.lists(st.one_of(st.integers(0, size + 3), st.sampled_from(odd_tokens(kind))), max_size=12)
    special = st.lists(st.sampled_from([tokenizer(kind).token_to_id(token) for token in SPECIAL]), max_size=12)
    tokens = [token for part in draw(st.lists(st.one_of(text, single, special), max_size=6)) for token in part]
    return kind, tokens, draw(st.integers(0, len(tokens))), draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(answers())
def test_the_pieces_joined_are_the_decoded_whole(drawn):
    kind, tokens, cut, skip = drawn
    prompt, answer = tokens[:cut], tokens[cut:]
    assert "".join(pieces_of(kind, prompt, answer, skip)) == answer_text(kind, prompt, answer, skip)


@settings(max_examples=100, deadline=None)
@given(answers())
def test_what_is_out_is_never_taken_back(drawn):
    """Whatever comes next: the text so far begins the decoded whole of the tokens so far and of any longer answer."""
    kind, tokens, cut, skip = drawn
    stream, out = detokenizer_of(kind, skip, tokens[:cut]), ""
    whole = answer_text(kind, tokens[:cut], tokens[cut:], skip)
    for token in tokens[cut:]:
        out += stream.push(token)
        assert whole.startswith(out)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_no_character_comes_broken_and_text_does_not_wait(kind, sample):
    ids = tokenizer(kind).encode(sample).ids
    pieces = pieces_of(kind, [], ids, False)
    assert "".join(pieces) == sample
    if REPLACEMENT not in sample:
        assert REPLACEMENT not in "".join(pieces)
    if kind in ("bytes", "byte-level") and not sample.endswith(REPLACEMENT):
        assert pieces[-1] == ""  # all of it is out before the end is known


@pytest.mark.parametrize("kind", ("bytes", "byte-level"))
def test_ascii_text_comes_with_its_own_token(kind):
    ids = tokenizer(kind).encode("the cat sat").ids
    stream = detokenizer_of(kind, True)
    assert [stream.push(token) for token in ids] == [tokenizer(kind).decode([token]) for token in ids]


@pytest.mark.parametrize("kind", ("byte-fallback", "metaspace"))
def test_the_leading_space_of_an_answer_stays_after_a_prompt_and_goes_without(kind):
    prompt, answer = tokenizer(kind).encode("the cat").ids, tokenizer(kind).encode("sat on the mat").ids
    assert "".join(pieces_of(kind, prompt, answer, True)) == " sat on the mat"
    assert "".join(pieces_of(kind, [], answer, True)) == "sat on the mat"
    # Special tokens alone are no context: decoding leaves them out, and strips the space.
    assert "".join(pieces_of(kind, [tokenizer(kind).token_to_id("<s>")] * 20, answer, True)) == "sat on the mat"


@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_an_unfinished_character_comes_at_the_end_as_it_decodes(kind):
    ids = tokenizer(kind).encode("ok 🦉").ids
    assert len(ids) > 4
    pieces = pieces_of(kind, [], ids[:-1], True)
    assert REPLACEMENT not in "".join(pieces[:-1])
    assert set(pieces[-1]) == {REPLACEMENT}


@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_a_character_begun_in_the_prompt_is_completed_in_the_answer(kind):
    ids = tokenizer(kind).encode("ok 🦉!").ids
    assert "".join(pieces_of(kind, ids[:-3], ids[-3:], True)) == "🦉!"


def test_a_wrong_byte_breaks_the_whole_run_of_byte_tokens_as_in_the_decoder():
    byte_tokens = [tokenizer("byte-fallback").token_to_id(f"<0x{byte:02X}>") for byte in (*"\n🦉".encode(), 0xFF)]
    assert "".join(pieces_of("byte-fallback", [], byte_tokens, True)) == REPLACEMENT * 6
    assert pieces_of("byte-fallback", [], byte_tokens[:-1], True)[-1] == "\n🦉"


@pytest.mark.parametrize("skip", (True, False))
@pytest.mark.parametrize("kind", ("bytes", "byte-level"))
def test_special_tokens_are_shown_or_skipped(kind, skip):
    made = tokenizer(kind)
    ids = [made.token_to_id("<s>"), *made.encode("hi").ids, made.token_to_id("<|end of turn|>")]
    assert "".join(pieces_of(kind, [], ids, skip)) == ("hi" if skip else "<s>hi<|end of turn|>")


def test_a_fast_tokenizer_of_transformers_reads_the_same():
    ids = tokenizer("byte-level").encode(SAMPLES[3]).ids
    stream = WindowDetokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer("byte-level")), True)
    assert "".join(stream.push(token) for token in ids) + stream.flush() == SAMPLES[3]


class Counting:
    """Counts the tokens that are decoded."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.tokens = inner, 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.tokens += len(ids)
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, id: int) -> str | None:
        return self.inner.id_to_token(id)


@pytest.mark.parametrize(
    "kind,text", [("byte-level", "the cat"), ("byte-level", "🦉"), ("byte-fallback", "🦉"), ("wordpiece", "the cat")]
)
def test_the_work_per_token_does_not_grow(kind, text):
    """Also in a flood of bytes that are no character at all."""
    ids = tokenizer(kind).encode(text).ids
    for flood in (ids, ids[-1:], odd_tokens(kind)):
        answer = (flood * 2000)[:2000]
        counting = Counting(tokenizer(kind))
        stream = WindowDetokenizer(counting, True)
        pieces = [stream.push(token) for token in answer]
        assert "".join(pieces) + stream.flush() == tokenizer(kind).decode(answer)
        assert counting.tokens < 30 * len(answer)


MUTANTS = {
    "open characters come out": (detokenizer, "text.removesuffix(_REPLACEMENT)", "text"),
    "runs of byte tokens come out early": (detokenizer, "if is_byte:\n            return", "if False:\n            return"),
    "no context before the window": (detokenizer, "_CONTEXT = 8", "_CONTEXT = 1"),
    "skipped tokens are context": (
        detokenizer,
        "return not self._tokenizer.decode([token_id], skip_special_tokens=False)",
        "return True",
    ),
    "held text is forgotten": (detokenizer, "text[: len(text) - held]", "text"),
    "nothing at the end": (detokenizer, "return self._advance(self._decode(self._window))", 'return ""'),
    "the prompt is no context": (detokenizer, "in reversed(prompt_token_ids)", "in ()"),
    "the prompt's open character stays": (detokenizer, "if not final.startswith(self._seen):", "if False:"),
    "the prompt's window cuts a run of bytes": (detokenizer, ">= _CONTEXT and not self._is_byte(token_id)", ">= _CONTEXT"),
    "bytes: the prompt is no context": (byte_detokenizer, "in reversed(prompt_token_ids)", "in ()"),
    "bytes: the prompt's open character is cut": (byte_detokenizer, "_OPEN = 3", "_OPEN = 1"),
    "bytes: the prompt's open character stays": (byte_detokenizer, "return text.removeprefix(_REPLACEMENT)", "return text"),
    "bytes: nothing at the end": (byte_detokenizer, "final=True", "final=False"),
    "bytes: skipped tokens are read": (byte_detokenizer, "if self._skip_special_tokens and", "if False and"),
    "bytes: added tokens are not": (byte_detokenizer, "return token.encode()", 'return b""'),
    "bytes: another alphabet": (byte_detokenizer, "0xAE, 0x100", "0xAD, 0x100"),
}


def known_answers() -> list[tuple[str, list[int], int, bool]]:
    found = []
    for kind in KINDS:
        made = tokenizer(kind)
        end = made.token_to_id("</s>")
        for sample in SAMPLES:
            ids = made.encode(sample).ids
            odd = odd_tokens(kind)[-1:]
            for tokens in (ids, ids[:3], [*ids[:-1], *odd, *odd], [*ids[:3], *[end] * 9, *ids[3:]], [*ids, *odd * 30, *ids]):
                found += [(kind, tokens, cut, skip) for cut in (0, 3, len(ids) - 2) for skip in (True, False)]
    return found


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_planted_fault_is_caught(fault):
    module, old, new = MUTANTS[fault]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the fault no longer fits the source: {old!r}"
    faulty = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), faulty)

    def right(kind: str, tokens: list[int], cut: int, skip: bool, names: Mapping[str, Any]) -> bool:
        prompt, answer = tokens[:cut], tokens[cut:]
        return "".join(pieces_of(kind, prompt, answer, skip, names)) == answer_text(kind, prompt, answer, skip)

    assert all(right(*answer, NAMES) for answer in known_answers())
    assert not all(right(*answer, NAMES | faulty) for answer in known_answers())


@pytest.mark.parametrize(("kind", "made"), [("byte-level", ByteDetokenizer), ("byte-fallback", WindowDetokenizer)])
def test_a_tokenizer_knows_how_its_tokens_are_read(kind, made):
    text = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer(kind)))
    for skip in (True, False, True):
        ids = [*tokenizer(kind).encode("the cat").ids, tokenizer(kind).token_to_id("</s>")]
        stream = text.detokenizer(skip)
        assert type(stream) is made
        assert "".join([*map(stream.push, ids), stream.flush()]) == ("the cat" if skip else "the cat</s>")
