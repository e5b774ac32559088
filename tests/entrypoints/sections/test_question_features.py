"""The features of a question against features written by hand, and its Chinese words against a search of all words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.entrypoints.sections import question_features as module
from hasten.entrypoints.sections.question_features import lexicon, question_features

FILE = Path(module.__file__).with_name("router_lexicon.json")
LEXICON = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_features_of_an_english_question() -> None:
    assert question_features("Tips, please: 3 zany zebras?") == {
        "#length en>4": "", "#clauses>1": "", "#clauses>2": "", "#numbers>0": "", "#?": "", "#:": "",
        "tips": "tips", "please": "please", "0": "3", "zany": "zany", "zebras": "zebras", "^^tips": "tips", "|": "", "$": "",
        "_^^<points>": "tips", "_<points>": "tips", "_^ <points>": "tips", "_<points> |": "tips",
        "_please": "please", "_^ please": "please", "_please |": "please",
        "_0": "3", "_^ 0": "3", "_~": "zany", "_0 ~": "3 zany", "_~ ~s": "zany zebras", "_~s": "zebras", "_~s $": "zebras",
        "_|": "", "_$": "",
    }  # fmt: skip


def test_the_features_of_a_chinese_question() -> None:
    found = question_features("鹳有哪些习俗")
    assert {name for name in found if name.startswith("_")} == {
        "_^^*", "_^^* 有", "_^^* 有 <each>", "_^ *", "_*", "_* 有", "_有", "_有 <each>", "_<each>", "_<each> <points>", "_<points>",
        "_<points> $", "_$",
    }  # fmt: skip
    assert found["_<each> <points>"] == "哪些习俗" and found["_* 有"] == "鹳有" and found["_<points>"] == "习俗"
    assert {"鹳", "^ 鹳", "鹳 有", "有 哪", "习 俗", "俗 $", "^^鹳", "^^鹳 有", "^^鹳 有 哪"} <= found.keys()
    assert {name for name in found if name.startswith("#")} == {"#length zh>4"}


@pytest.mark.parametrize(
    "text",
    ['Translate "ten tips" please', "Translate “ten tips” please", "Translate ‘ten tips’ please", "Translate 'ten tips' please"],
)
def test_quoted_text_is_left_out(text: str) -> None:
    found = question_features(text)
    assert "#quote" in found and "tips" not in found and "_<points>" not in found and "please" in found
    assert "tips" in question_features("My friend's tips for my parents' trip")  # apostrophes quote nothing


@given(
    st.text(
        alphabet="".join(word for words in LEXICON["classes"].values() for word in words if word >= "\u4e00")[:400], max_size=30
    )
)
def test_chinese_words_are_the_longest_of_the_lexicon(text: str) -> None:
    words = {word: word for word in LEXICON["function_words"]}
    words |= {word: f"<{name}>" for name, listed in LEXICON["classes"].items() for word in listed}
    expected, rest = [], text
    while rest:
        word = max((word for word in words if rest.startswith(word)), key=len, default="")
        if word or expected[-1:] != ["*"]:
            expected.append(words.get(word, "*"))
        rest = rest[len(word) or 1 :]
    assert [piece.name for piece in module._classes(list(text))] == expected
    assert "".join(piece.words for piece in module._classes(list(text))) == text


@given(st.text(max_size=60))
def test_any_text_has_features(text: str) -> None:
    assert all(name and words == words.lower() for name, words in question_features(text).items())


def test_each_word_is_in_the_lexicon_once() -> None:
    listed = [*LEXICON["function_words"], *(word for words in LEXICON["classes"].values() for word in words)]
    assert len(listed) == len(set(listed)) == len(lexicon().names) and all(word == word.lower().strip() for word in listed)
    assert FILE.stat().st_size < 50_000
