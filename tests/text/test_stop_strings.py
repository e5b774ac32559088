"""Streamed stop strings equal a plain search of the full text, however the text is cut into pieces."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.text import stop_strings as module
from hasten.text.stop_strings import StopStrings

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


def first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Return the end and the stop string of the first complete match, the longest of those that end there."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return end, max(matches, key=len)
    return None


def expected_output(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Return what may be shown of ``text`` when more may follow, and the stop string that was met."""
    match = first_stop(text, stops)
    if match is not None:
        end, stop = match
        return text[: end if include else end - len(stop)], stop
    num_shown = len(text)
    for begin in range(len(text), -1, -1):
        if any(len(text) - begin < len(stop) and stop.startswith(text[begin:]) for stop in stops):
            num_shown = begin
    return text[:num_shown], None


def is_correct(
    pieces: Sequence[str], stops: tuple[str, ...], include: bool, make: Callable[..., StopStrings] = StopStrings
) -> bool:
    """Whether the output is the expected one after every piece and at the end."""
    stop_strings, shown, text = make(stops, include), "", ""
    for piece in pieces:
        text += piece
        visible, matched = stop_strings.push(piece)
        shown += visible
        if (shown, matched) != expected_output(text, stops, include):
            return False
    match = first_stop(text, stops)
    return shown + stop_strings.flush() == (expected_output(text, stops, include)[0] if match else text)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, max_size=6), STOPS, st.booleans())
def test_output_equals_a_search_of_the_full_text(pieces, stops, include):
    assert is_correct(pieces, stops, include)


@pytest.mark.parametrize("include", (False, True))
@pytest.mark.parametrize("stops", (("aab",), ("ab", "b"), ("abab", "ba"), ("aabb", "ab"), ("a",), ("\n\n", "\nUser:")))
def test_output_does_not_depend_on_the_pieces(stops, include):
    for text in ("abaababb", "aabaabbab", "\n\nUser:", "x\nUser: \n\n"):
        for cuts in itertools.product((False, True), repeat=len(text) - 1):
            pieces = [text[0]]
            for cut, character in zip(cuts, text[1:], strict=True):
                if cut:
                    pieces.append(character)
                else:
                    pieces[-1] += character
            assert is_correct(pieces, stops, include)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), LETTERS), max_size=8), STOPS, st.booleans())
def test_texts_that_share_an_automaton_do_not_meet(pieces, stops, include):
    """Two texts that grow in turns equal the same texts alone."""
    first = StopStrings(stops, include)
    both, shown = (first.restart(), first.restart()), ["", ""]
    for which, piece in pieces:
        shown[which] += both[which].push(piece)[0]
    for which in (False, True):
        text = "".join(piece for owner, piece in pieces if owner == which)
        assert shown[which] == expected_output(text, stops, include)[0]
        assert both[which].restart().push("x") == ("x", None)


def test_the_start_of_a_stop_string_is_held_back():
    stop_strings = StopStrings(("<|end|>",), include=False)
    assert [stop_strings.push(piece) for piece in ("Hi <", "|e", "nd", "|", "> and more")] == [
        ("Hi ", None),
        ("", None),
        ("", None),
        ("", None),
        ("", "<|end|>"),
    ]
    assert stop_strings.push("later") == ("", "<|end|>")
    assert stop_strings.flush() == ""


def test_text_that_cannot_become_a_stop_string_is_released_at_once():
    stop_strings = StopStrings(("<|end|>",), include=False)
    assert stop_strings.push("a <|en") == ("a ", None)
    assert stop_strings.push("ough") == ("<|enough", None)


def test_flush_releases_the_held_text():
    stop_strings = StopStrings(("\n\nUser:",), include=True)
    assert stop_strings.push("Bye.\n\n") == ("Bye.", None)
    assert stop_strings.flush() == "\n\n"
    assert stop_strings.flush() == ""


def test_include_keeps_the_stop_string():
    assert StopStrings(("END", "D"), include=True).push("the END.") == ("the END", "END")
    assert StopStrings(("END", "D"), include=False).push("the END.") == ("the ", "END")


def test_the_first_complete_stop_string_wins_over_a_longer_one_around_it():
    assert StopStrings(("abcdX", "bc"), include=False).push("abcdX") == ("a", "bc")


def test_without_stop_strings_the_text_is_returned_as_the_same_object():
    text = "".join(["some", " text"])
    visible, matched = StopStrings((), include=False).push(text)
    assert visible is text
    assert matched is None


def test_non_ascii_characters():
    assert is_correct(["完", "了。", "再", "见👩", "\u200d", "💻!"], ("再见", "👩‍💻"), False)
    assert is_correct(["👩", "\u200d", "💻!"], ("👩‍💻",), False)


MUTANTS = {
    "nothing is held back": ("num_shown = len(text) - self._state.length", "num_shown = len(text)"),
    "one character too few is held back": ("len(text) - self._state.length", "len(text) - max(0, self._state.length - 1)"),
    "held back longer than needed": ("num_shown = len(text) - self._state.length", "num_shown = max(0, len(text) - 4)"),
    "no fallback to a shorter prefix": ("state = state.failure\n        return", "state = None\n        return"),
    "a stop string inside another is missed": ("child.match or child.failure.match", "child.match"),
    "the shorter of two that end together": ("child.match or child.failure.match", "child.failure.match or child.match"),
    "text after the match": ("text[: end if", "text[: len(text) if"),
    "held text is forgotten": ("text, start = self._held_back + text, len(self._held_back)", "start = 0"),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_planted_faults_are_caught(fault):
    old, new = MUTANTS[fault]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the source no longer has the code to replace: {old!r}"
    namespace = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    make = cast(Callable[..., StopStrings], namespace["StopStrings"])
    texts = ("".join(letters) for letters in itertools.product("ab", repeat=6))
    stops = (("aab",), ("ab", "b"), ("abab", "ba"), ("aabb", "ab"))
    assert not all(
        is_correct([text[:2], text[2:3], text[3:]], stop, include, make)
        for text in texts
        for stop in stops
        for include in (False, True)
    )
