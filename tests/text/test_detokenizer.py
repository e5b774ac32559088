"""Detokenized pieces joined equal the decoded text.

The tokenizers are trained here: byte-level, byte-fallback, Metaspace and WordPiece.
The byte-level tokenizer is tested twice: "byte-level" with ``WindowDetokenizer`` and "bytes" with ``ByteDetokenizer``.
"""

import inspect
import itertools
import json
import os.path
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hasten.core.errors import CheckpointError
from hasten.text import byte_detokenizer, byte_run, detokenizer
from hasten.text.byte_detokenizer import ByteDetokenizer
from hasten.text.detokenizer import Detokenizer, WindowDetokenizer
from hasten.text.stop_strings import StopStrings
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


def tokenizer_of(kind: str) -> Tokenizer:
    return trained("byte-level" if kind == "bytes" else kind)


@cache
def trained(kind: str) -> Tokenizer:
    special = [AddedToken(token, special=True) for token in SPECIAL]
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special, show_progress=False
        )
        tokenizer.train_from_iterator([TEXT], trainer)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.train_from_iterator(
            [TEXT], trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", *special], show_progress=False)
        )
    else:
        tokenizer = sentencepiece(kind == "byte-fallback", special)
    tokenizer.add_tokens(["<think>", " two words "])
    return tokenizer


def sentencepiece(byte_fallback: bool, special: list[AddedToken]) -> Tokenizer:
    """Return a tokenizer with byte fallback as in Llama 2, or with a Metaspace decoder.

    In the former the space is ``▁`` and unknown characters are byte tokens.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True))
    bytes_256 = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    if byte_fallback:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", *special, *bytes_256, REPLACEMENT], show_progress=False, limit_alphabet=60
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    # The trainer marks the byte tokens as special; here they are plain members of the vocabulary, as in Llama 2.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in (*SPECIAL, "<unk>")]
    return Tokenizer.from_str(json.dumps(state))


def expected_text(kind: str, prompt: Sequence[int], completion: Sequence[int], skip: bool) -> str:
    """Return decode(prompt + completion) without the part that it shares with decode(prompt)."""
    prompt_text = tokenizer_of(kind).decode(mended(kind, prompt, skip), skip_special_tokens=skip)
    full_text = tokenizer_of(kind).decode(mended(kind, [*prompt, *completion], skip), skip_special_tokens=skip)
    return full_text[len(os.path.commonprefix([prompt_text, full_text])) :]  # noqa: RUF071


def mended(kind: str, token_ids: Sequence[int], skip: bool) -> list[int]:
    """Replace byte tokens from the first wrong one of a run to its end by the token "�", so that characters before it stay.

    Runs that are valid are unchanged.
    """
    if kind != "byte-fallback":
        return list(token_ids)
    tokenizer = tokenizer_of(kind)
    left_out = [token for token in token_ids if tokenizer.id_to_token(token) is None]
    left_out += [tokenizer.token_to_id(token) for token in (*SPECIAL, "<unk>") if skip]
    byte_of = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    result: list[int] = []
    shown = [token for token in token_ids if token not in left_out]
    for is_run, group in itertools.groupby(shown, lambda token: token in byte_of):
        run = list(group)
        num_good = len(run)
        while is_run and num_good and not is_utf8(bytes(byte_of[token] for token in run[:num_good])):
            num_good -= 1
        result += run[:num_good] + [tokenizer.token_to_id(REPLACEMENT)] * (len(run) - num_good)
    return result


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


NAMES = {**vars(detokenizer), **vars(byte_detokenizer), **vars(byte_run)}


def detokenizer_of(kind: str, skip: bool, prompt: Sequence[int] = (), names: Mapping[str, Any] = NAMES) -> Detokenizer:
    if kind == "bytes":
        return cast(Detokenizer, names["ByteDetokenizer"](names["TokenBytes"](tokenizer_of(kind), skip), prompt))
    return cast(Detokenizer, names["WindowDetokenizer"](tokenizer_of(kind), skip, prompt))


def pieces_of(
    kind: str, prompt: Sequence[int], completion: Sequence[int], skip: bool, names: Mapping[str, Any] = NAMES
) -> list[str]:
    stream = detokenizer_of(kind, skip, prompt, names)
    return [*(stream.push(token) for token in completion), stream.flush()]


@cache
def partial_tokens(kind: str) -> list[int]:
    """Return the tokens that decode to incomplete characters when they stand alone."""
    tokenizer = tokenizer_of(kind)
    return [token for token in range(tokenizer.get_vocab_size()) if REPLACEMENT in tokenizer.decode([token])] or [0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[int], int, bool]:
    """Draw (kind, tokens, number of prompt tokens, skip special tokens).

    The tokens are texts, single tokens and ids without a token.
    """
    kind = draw(st.sampled_from(KINDS))
    size = tokenizer_of(kind).get_vocab_size()
    text = st.one_of(st.sampled_from(SAMPLES), st.text(max_size=12)).map(lambda t: tokenizer_of(kind).encode(t).ids)
    single = st.lists(st.one_of(st.integers(0, size + 3), st.sampled_from(partial_tokens(kind))), max_size=12)
    special = st.lists(st.sampled_from([tokenizer_of(kind).token_to_id(token) for token in SPECIAL]), max_size=12)
    tokens = [token for part in draw(st.lists(st.one_of(text, single, special), max_size=6)) for token in part]
    return kind, tokens, draw(st.integers(0, len(tokens))), draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_pieces_joined_are_the_decoded_text(case):
    kind, tokens, num_prompt_tokens, skip = case
    prompt, completion = tokens[:num_prompt_tokens], tokens[num_prompt_tokens:]
    assert "".join(pieces_of(kind, prompt, completion, skip)) == expected_text(kind, prompt, completion, skip)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_emitted_text_is_never_taken_back(case):
    """At every token, the emitted text is a prefix of the decoded text of the full completion."""
    kind, tokens, num_prompt_tokens, skip = case
    prompt, completion = tokens[:num_prompt_tokens], tokens[num_prompt_tokens:]
    stream, emitted = detokenizer_of(kind, skip, prompt), ""
    full_text = expected_text(kind, prompt, completion, skip)
    for token in completion:
        emitted += stream.push(token)
        assert full_text.startswith(emitted)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_no_character_is_broken_and_complete_text_is_not_held_back(kind, sample):
    ids = tokenizer_of(kind).encode(sample).ids
    pieces = pieces_of(kind, [], ids, False)
    assert "".join(pieces) == sample
    if REPLACEMENT not in sample:
        assert REPLACEMENT not in "".join(pieces)
    if kind in ("bytes", "byte-level") and not sample.endswith(REPLACEMENT):
        assert pieces[-1] == ""  # nothing was held back for flush


@pytest.mark.parametrize("kind", ("bytes", "byte-level"))
def test_ascii_text_is_emitted_with_its_token(kind):
    ids = tokenizer_of(kind).encode("the cat sat").ids
    stream = detokenizer_of(kind, True)
    assert [stream.push(token) for token in ids] == [tokenizer_of(kind).decode([token]) for token in ids]


@pytest.mark.parametrize("kind", ("byte-fallback", "metaspace"))
def test_the_leading_space_of_a_completion_stays_only_after_a_prompt(kind):
    prompt, completion = tokenizer_of(kind).encode("the cat").ids, tokenizer_of(kind).encode("sat on the mat").ids
    assert "".join(pieces_of(kind, prompt, completion, True)) == " sat on the mat"
    assert "".join(pieces_of(kind, [], completion, True)) == "sat on the mat"
    # Skipped special tokens are not decoded, so the space is stripped as without a prompt.
    assert "".join(pieces_of(kind, [tokenizer_of(kind).token_to_id("<s>")] * 20, completion, True)) == "sat on the mat"


@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_flush_returns_an_incomplete_character_as_it_decodes(kind):
    ids = tokenizer_of(kind).encode("ok 🦉").ids
    assert len(ids) > 4
    pieces = pieces_of(kind, [], ids[:-1], True)
    assert REPLACEMENT not in "".join(pieces[:-1])
    assert set(pieces[-1]) == {REPLACEMENT}


@pytest.mark.parametrize("kind", ("bytes", "byte-level", "byte-fallback"))
def test_a_character_that_begins_in_the_prompt_is_completed(kind):
    ids = tokenizer_of(kind).encode("ok 🦉!").ids
    assert "".join(pieces_of(kind, ids[:-3], ids[-3:], True)) == "🦉!"


def byte_tokens(value: bytes) -> list[int]:
    return [tokenizer_of("byte-fallback").token_to_id(f"<0x{byte:02X}>") for byte in value]


def test_a_character_of_byte_tokens_is_emitted_with_its_last_byte():
    text = "🦉\nα的🙂" * 15
    stream = detokenizer_of("byte-fallback", True)
    assert [stream.push(token) for token in byte_tokens(text.encode())] == [
        piece for character in text for piece in [*[""] * (len(character.encode()) - 1), character]
    ]
    assert stream.flush() == ""


def test_a_stop_string_of_byte_tokens_is_met_with_its_last_byte():
    stream, stop_strings = detokenizer_of("byte-fallback", True), StopStrings(("😀",), include=True)
    shown = [stop_strings.push(stream.push(token)) for token in byte_tokens("α😀".encode() * 2)]
    assert shown[:6] == [("", None), ("α", None), *[("", None)] * 3, ("😀", "😀")]


@pytest.mark.parametrize("prompt", ("", "the cat"))
def test_a_wrong_byte_spoils_the_rest_of_its_run_and_no_character_before_it(prompt):
    prompt_ids = tokenizer_of("byte-fallback").encode(prompt).ids
    wrong = byte_tokens("🦉".encode() + b"\xf0\xff" + "🦉".encode())
    assert pieces_of("byte-fallback", prompt_ids, wrong, True) == ["", "", "", "🦉", "", *[REPLACEMENT * 2], *REPLACEMENT * 4, ""]
    text = tokenizer_of("byte-fallback").encode("the cat").ids
    pieces = pieces_of("byte-fallback", prompt_ids, [*wrong, *text, *byte_tokens("🦉".encode())], True)
    assert "".join(pieces) == "🦉" + REPLACEMENT * 6 + " the cat🦉"


def test_tokens_that_only_look_like_bytes_are_text():
    """Without byte fallback in the decoder, ``<0x41>`` is six letters, and no part of a character."""
    tokenizer = Tokenizer(models.WordLevel({"<0x41>": 0, "a": 1}, unk_token="a"))
    stream = WindowDetokenizer(tokenizer, True)
    assert [stream.push(token) for token in (0, 0, 1)] == ["<0x41>", " <0x41>", " a"]


def test_tokens_without_text_are_no_start_of_a_text():
    """The space after them stays, although a text that begins with it would lose it."""
    tokenizer = Tokenizer(models.BPE({"": 0, "▁cat": 1}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    for prompt, completion in (([1, *[0] * 50], [1, 1]), ([], [1, *[0] * 50, 1])):
        stream = WindowDetokenizer(tokenizer, True, prompt)
        pieces = [stream.push(token) for token in completion]
        assert "".join(pieces) == (" cat cat" if prompt else "cat cat")


@pytest.mark.parametrize("skip", (True, False))
@pytest.mark.parametrize("kind", ("bytes", "byte-level"))
def test_special_tokens_are_shown_or_skipped(kind, skip):
    tokenizer = tokenizer_of(kind)
    ids = [tokenizer.token_to_id("<s>"), *tokenizer.encode("hi").ids, tokenizer.token_to_id("<|end of turn|>")]
    assert "".join(pieces_of(kind, [], ids, skip)) == ("hi" if skip else "<s>hi<|end of turn|>")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_panic_of_the_library_is_an_error_of_the_checkpoint():
    """``Strip`` from the right panics at an empty token, with an error that is no ``Exception``."""
    tokenizer = Tokenizer(models.BPE({"": 0, "cat": 1}, []))
    tokenizer.decoder = decoders.Strip(" ", 0, 1)
    stream = WindowDetokenizer(tokenizer, False)
    assert stream.push(1) == "cat"
    with pytest.raises(CheckpointError, match="cannot decode"):
        stream.push(0)


def test_half_a_surrogate_pair_at_the_end_of_a_prompt_is_not_shown_again():
    """Its two bytes are two �, although they could be the start of three bytes."""
    prompt = [tokenizer_of("bytes").token_to_id(letter) for letter in "í¡"]  # the bytes ED A1
    assert tokenizer_of("bytes").decode(prompt) == REPLACEMENT * 2
    assert pieces_of("bytes", prompt, [], True) == [""]
    assert "".join(pieces_of("bytes", prompt, tokenizer_of("bytes").encode("the").ids, True)) == "the"


class CountingTokenizer:
    """Counts the decoded tokens."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.num_decoded = inner, 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.num_decoded += len(ids)
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, id: int) -> str | None:
        return self.inner.id_to_token(id)


@pytest.mark.parametrize(
    "kind,text", [("byte-level", "the cat"), ("byte-level", "🦉"), ("byte-fallback", "🦉"), ("wordpiece", "the cat")]
)
def test_the_work_per_token_does_not_grow(kind, text):
    """Not even for a long run of bytes that form no character."""
    ids = tokenizer_of(kind).encode(text).ids
    for repeated in (ids, ids[-1:], partial_tokens(kind)):
        completion = (repeated * 2000)[:2000]
        counting = CountingTokenizer(tokenizer_of(kind))
        stream = WindowDetokenizer(counting, True)
        pieces = [stream.push(token) for token in completion]
        assert "".join(pieces) + stream.flush() == expected_text(kind, [], completion, True)
        assert counting.num_decoded < 30 * len(completion)


MUTANTS = {
    "incomplete characters are emitted": (detokenizer, "text.removesuffix(_REPLACEMENT)", "text"),
    "byte tokens are text": (detokenizer, 'if kind == "text":\n            return self', "if True:\n            return self"),
    "the window cuts a character of byte tokens": (detokenizer, "in range(0x80, 0xC0)", "in ()"),
    "the open bytes of a prompt are shown again": (
        detokenizer,
        "run.num_open - self._num_prompt_bytes",
        "run.num_open",
    ),
    "an open character at the end of a run is lost": (
        detokenizer,
        "return _REPLACEMENT * num_unseen\n\n    def _emit",
        'return ""\n\n    def _emit',
    ),
    "text before byte tokens is forgotten": (detokenizer, "num_held_back > 0", "False"),
    "a wrong byte completes a character": (byte_run, 'return "wrong" if self._is_wrong else', 'return "complete" or'),
    "a wrong byte spoils only its character": (
        byte_run,
        "self._is_wrong = True",
        'self._open_bytes = b""\n            return "wrong"',
    ),
    "no context before the window": (detokenizer, "_CONTEXT = 8", "_CONTEXT = 1"),
    "skipped tokens are context": (
        detokenizer,
        'return self._tokenizer.decode([token_id], skip_special_tokens=False) != ""',
        "return False",
    ),
    "held text is forgotten": (detokenizer, "text[: len(text) - num_held_back]", "text"),
    "flush returns nothing": (detokenizer, "return self._emit(self._decode(self._window)) if", 'return "" if'),
    "the prompt is no context": (detokenizer, "in reversed(token_ids)", "in ()"),
    "the prompt's incomplete character stays": (detokenizer, "if not text.startswith(self._emitted):", "if False:"),
    "the prompt's window cuts a run of bytes": (detokenizer, '>= num_needed and kind == "text"', ">= num_needed"),
    "bytes: the prompt is no context": (byte_detokenizer, "in reversed(prompt_token_ids)", "in ()"),
    "bytes: the prompt's incomplete character is cut": (byte_detokenizer, "_MAX_INCOMPLETE = 3", "_MAX_INCOMPLETE = 1"),
    "bytes: the prompt's incomplete character stays": (byte_detokenizer, "return text.removeprefix(prompt_end)", "return text"),
    "bytes: flush returns nothing": (byte_detokenizer, "final=True", "final=False"),
    "bytes: skipped tokens are emitted": (byte_detokenizer, "if self._skip_special_tokens and", "if False and"),
    "bytes: added tokens are not": (byte_detokenizer, "return token.encode()", 'return b""'),
    "bytes: another alphabet": (byte_detokenizer, "0xAE, 0x100", "0xAD, 0x100"),
}


@cache
def fixed_cases() -> list[tuple[str, list[int], int, bool]]:
    found = [("byte-fallback", tokens, num_prompt, skip) for tokens, num_prompt in wrong_bytes() for skip in (True, False)]
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        end = tokenizer.token_to_id("</s>")
        for sample in SAMPLES:
            ids = tokenizer.encode(sample).ids
            partial = partial_tokens(kind)[-1:]
            for tokens in (
                ids,
                ids[:3],
                [*ids[:-1], *partial, *partial],
                [*ids[:3], *[end] * 9, *ids[3:]],
                [*ids, *partial * 30, *ids],
            ):
                found += [(kind, tokens, num_prompt, skip) for num_prompt in (0, 3, len(ids) - 2) for skip in (True, False)]
    return found


def wrong_bytes() -> list[tuple[list[int], int]]:
    """Return token ids with wrong bytes, and how many of them are the prompt's."""
    text = tokenizer_of("byte-fallback").encode("a cat").ids
    literal = tokenizer_of("byte-fallback").token_to_id(REPLACEMENT)
    owls, open_owl, wrong = byte_tokens("🦉".encode() * 9), byte_tokens("🦉".encode()[:3]), byte_tokens(b"\xff")
    runs = [owls + open_owl, owls + wrong + owls, open_owl + wrong, [literal, *wrong], [literal, *owls]]
    return [(text + run + text, len(text) + num_prompt) for run in runs for num_prompt in (0, 1, 2, len(run) - 1, len(run))]


@pytest.mark.parametrize("fault", MUTANTS)
def test_planted_faults_are_caught(fault, monkeypatch):
    module, old, new = MUTANTS[fault]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the source no longer has the code to replace: {old!r}"
    faulty = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), faulty)
    assert all_are_correct()
    if module is byte_run:
        monkeypatch.setattr(detokenizer, "ByteRun", faulty["ByteRun"])
    assert not all(is_correct(*case, NAMES | faulty) for case in fixed_cases())


@cache
def all_are_correct() -> bool:
    return all(is_correct(*case, NAMES) for case in fixed_cases())


def is_correct(kind: str, tokens: list[int], num_prompt: int, skip: bool, names: Mapping[str, Any]) -> bool:
    prompt, completion = tokens[:num_prompt], tokens[num_prompt:]
    return "".join(pieces_of(kind, prompt, completion, skip, names)) == expected_text(kind, prompt, completion, skip)


@pytest.mark.parametrize(("kind", "expected_class"), [("byte-level", ByteDetokenizer), ("byte-fallback", WindowDetokenizer)])
def test_the_tokenizer_chooses_the_detokenizer(kind, expected_class):
    text = TextTokenizer(tokenizer_of(kind))
    for skip in (True, False, True):
        ids = [*tokenizer_of(kind).encode("the cat").ids, tokenizer_of(kind).token_to_id("</s>")]
        stream = text.detokenizer(skip)
        assert type(stream) is expected_class
        assert "".join([*map(stream.push, ids), stream.flush()]) == ("the cat" if skip else "the cat</s>")
