"""``GrammarGuide`` allows the tokens that brute force over a language's texts allows, whatever it was asked before."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sampling.guides.languages import (
    EOS,
    LANGUAGES,
    TOKENIZER,
    TOKENS,
    VOCAB_SIZE,
    Language,
    bits,
    fresh_matcher,
    make_guide,
    text_of,
)

from hasten.core.errors import HastenError
from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides import grammar_guide
from hasten.sampling.guides.grammar_guide import GrammarGuide

OPEN = {
    "json": StructuredOutputs(json={"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}}),
    "json_object": StructuredOutputs(json_object=True),
    "regex": StructuredOutputs(regex="(a|bc)*[^a]{2,}|ab+"),
    "grammar": StructuredOutputs(grammar='start: e\ne: e "a" e | "b" | "{" e "}"'),
}
FORMS = {name: language.form for name, language in LANGUAGES.items()} | OPEN


def walk(language: Language, draw: random.Random) -> list[int]:
    """Return the tokens of a random text of a language, cut at random."""
    tokens: list[int] = []
    while (choices := sorted(language.allowed(tokens))) != [EOS]:
        token_id = draw.choice(choices)
        if token_id == EOS:
            break
        tokens.append(token_id)
    return tokens


def open_walk(form: StructuredOutputs, draw: random.Random, length: int) -> list[int]:
    """Return up to ``length`` random tokens of a form, by matchers of their own."""
    tokens: list[int] = []
    for _ in range(length):
        matcher = fresh_matcher(form, tokens)
        choices = [token_id for token_id in range(EOS) if matcher.validate_tokens([token_id])]
        if not choices:
            break
        tokens.append(draw.choice(choices))
    return tokens


@pytest.mark.parametrize("name", LANGUAGES)
def test_masks_and_ends_are_those_of_brute_force(name: str) -> None:
    language, draw = LANGUAGES[name], random.Random(name)
    guide = make_guide(language.form)
    for _ in range(12):
        tokens = walk(language, draw)
        for n in range(len(tokens) + 1):
            before = tokens[:n]
            if not guide.forced_tokens(before):
                assert bits(guide.mask(before)) == language.allowed(before), before
            assert guide.is_complete(before) == (text_of(before) in language.texts)


@pytest.mark.parametrize("name", LANGUAGES)
def test_forced_tokens_begin_the_only_text_that_may_follow(name: str) -> None:
    language, draw = LANGUAGES[name], random.Random(name)
    guide, num_forced = make_guide(language.form), 0
    for _ in range(12):
        tokens = walk(language, draw)
        for n in range(len(tokens) + 1):
            forced = guide.forced_tokens(tokens[:n])
            num_forced += len(forced)
            texts = [token_id for token_id in forced if token_id != EOS]
            assert forced[: len(texts)] == texts  # an end token stands last
            assert language.common(tokens[:n]).startswith(text_of(texts))
            for k, token_id in enumerate(forced):
                assert token_id in language.allowed([*tokens[:n], *forced[:k]])
    assert bool(num_forced) == (name not in ("counted", "runs", "lark", "gbnf"))  # elsewhere a longer token may come


def test_a_single_text_is_forced_as_the_tokenizer_cuts_it() -> None:
    forced = make_guide(LANGUAGES["one"].form).forced_tokens([])
    assert forced == TOKENIZER.encode("abcabcaaaa").ids[: len(forced)]
    assert text_of(forced[:2]) == b"abcabc"


@pytest.mark.parametrize("name", LANGUAGES)
def test_num_allowed_counts_the_tokens_that_masks_allow(name: str) -> None:
    """An end token counts as the last one."""
    language, draw = LANGUAGES[name], random.Random(name)
    guide = make_guide(language.form)
    for _ in range(40):
        tokens = [*walk(language, draw), EOS]
        start = draw.randrange(len(tokens))
        following = tokens[start:]
        if draw.random() < 0.7:
            following.insert(draw.randrange(len(following) + 1), draw.randrange(EOS + 1))
        expected = 0
        while expected < len(following) and following[expected] in language.allowed([*tokens[:start], *following[:expected]]):
            expected += 1
            if following[expected - 1] == EOS:
                break
        assert guide.num_allowed(tokens[:start], following) == expected, (tokens[:start], following)


def answers(guide: GrammarGuide, token_ids: list[int], kind: int, following: list[int]) -> Any:
    if kind == 0:
        return bits(guide.mask(token_ids))
    if kind == 1:
        return list(guide.forced_tokens(token_ids))
    return guide.is_complete(token_ids) if kind == 2 else guide.num_allowed(token_ids, following)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMS)),
    seed=st.integers(0, 2**32),
    max_cursors=st.integers(1, 4),
    num_outputs=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=30),
)
def test_answers_follow_from_the_tokens_alone(
    name: str, seed: int, max_cursors: int, num_outputs: int, steps: list[tuple[int, int, int]]
) -> None:
    """Any order of questions about several outputs gives what a new guide answers: forks, branches and rejected drafts."""
    form, draw = FORMS[name], random.Random(seed)
    outputs = [open_walk(form, draw, 12) for _ in range(num_outputs)]
    outputs.append(outputs[0][: len(outputs[0]) // 2])
    outputs += [
        [*output, EOS, *output[:2]] for output in outputs if make_guide(form).is_complete(output)
    ]  # drafts with an end token
    guide = make_guide(form, max_cursors)
    for which, length, kind in steps:
        output = outputs[which % len(outputs)]
        tokens = output[: length % (len(output) + 1)]
        following = [*output[len(tokens) :], draw.randrange(EOS + 1), draw.randrange(EOS + 1)]
        assert answers(guide, tokens, kind, following) == answers(make_guide(form), tokens, kind, following)
        assert len(guide._cursors) <= max_cursors


@pytest.mark.parametrize("name", OPEN)
def test_masks_are_those_of_a_new_matcher_token_by_token(name: str) -> None:
    form, draw = OPEN[name], random.Random(name)
    guide = make_guide(form)
    for _ in range(4):
        tokens = open_walk(form, draw, 20)
        for n in range(0, len(tokens) + 1, 3):
            matcher = fresh_matcher(form, tokens[:n])
            allowed = {token_id for token_id in range(VOCAB_SIZE) if matcher.validate_tokens([token_id])}
            if not guide.forced_tokens(tokens[:n]):
                assert bits(guide.mask(tokens[:n])) == allowed | ({EOS} if matcher.is_accepting() else set())


def test_rows_of_logits_that_are_no_tokens_are_masked() -> None:
    assert max(bits(make_guide(StructuredOutputs(regex="(?s:.)*")).mask([]))) == EOS


@pytest.mark.parametrize("wrong", [[b"{"], [b"abc", b"abc"], [b"ab", b"\xff"]])
def test_an_output_that_is_not_of_the_form_is_an_error(wrong: list[bytes]) -> None:
    tokens = [TOKENS[text] for text in wrong]
    for name in ("mask", "forced_tokens", "is_complete"):
        guide = make_guide(LANGUAGES["counted"].form, 2)
        assert guide.num_allowed([], tokens) == len(tokens) - 1
        with pytest.raises(HastenError, match="the grammar of structured_outputs cannot go on"):
            getattr(guide, name)(tokens)
    assert bits(make_guide(LANGUAGES["counted"].form).mask([])) == LANGUAGES["counted"].allowed([])


@pytest.mark.parametrize("token_id", [VOCAB_SIZE - 1, VOCAB_SIZE + 70, 2**31])
def test_a_number_that_is_no_token_is_an_error(token_id: int) -> None:
    with pytest.raises(HastenError, match="the grammar of structured_outputs cannot go on"):
        make_guide(LANGUAGES["counted"].form).mask([token_id])


def test_an_exceeded_limit_is_an_error() -> None:
    guide = make_guide(StructuredOutputs(grammar='start: s\ns: s s s | s s | "a"'))
    assert TOKENS[b"aa"] in bits(guide.mask([TOKENS[b"a"]] * 3))
    begin = time.process_time()
    with pytest.raises(HastenError, match=r"cannot go on: got .*items.* Simplify it"):
        guide.mask([TOKENS[b"a"]] * 400)
    assert time.process_time() - begin < 4


def test_large_forms_of_honest_use_are_within_the_limits() -> None:
    draw = random.Random(3)
    names = [f"property {i}" for i in range(240)]
    schema = {"properties": {name: {"type": "integer"} for name in names}, "additionalProperties": False, "type": "object"}
    values = {name: draw.randint(0, 99) for name in names if draw.random() < 0.3}
    text = "".join(draw.choice("abc é你\U0001f600.") for _ in range(1900))
    cases = [
        (StructuredOutputs(json=schema), json.dumps(values)),
        (StructuredOutputs(json={"type": "string", "maxLength": 2000}), json.dumps(text, ensure_ascii=False)),
        (StructuredOutputs(regex=".{0,2000}"), text),
        (StructuredOutputs(json="true"), json.dumps([values, text], ensure_ascii=False)),
        (StructuredOutputs(json={}), json.dumps({"a": [1, None, {"b": text[:99]}]}, ensure_ascii=False)),
    ]
    for form, output in cases:
        guide, tokens = make_guide(form), TOKENIZER.encode(output).ids
        for n in range(0, len(tokens), 5):
            allowed = guide.forced_tokens(tokens[:n])[:1] or bits(guide.mask(tokens[:n]))
            assert tokens[n] in allowed
        assert guide.is_complete(tokens)


def test_a_guide_with_slow_masks_takes_no_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    language = LANGUAGES["counted"]
    guide, tokens = make_guide(language.form), [TOKENS[b"ab"], TOKENS[b"c"]]
    guide.mask([])
    assert guide.num_allowed([], tokens) == 2
    monkeypatch.setattr(grammar_guide, "SLOW_MASK", -1.0)
    assert guide.num_allowed([], tokens) == 0
    assert bits(guide.mask([])) == language.allowed([])
