"""Stop strings against a plain search of the whole text, at every way to cut it."""

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
    """(end, stop) of the stop string that is complete first; of several that end there, the longest."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return end, max(met, key=len)
    return None


def oracle(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """What may be shown once all of ``text`` is there and more may follow."""
    met = first_stop(text, stops)
    if met is not None:
        end, stop = met
        return text[: end if include else end - len(stop)], stop
    shown = len(text)
    for begin in range(len(text), -1, -1):
        if any(len(text) - begin < len(stop) and stop.startswith(text[begin:]) for stop in stops):
            shown = begin
    return text[:shown], None


def agrees(pieces: Sequence[str], stops: tuple[str, ...], include: bool, kind: Callable[..., StopStrings] = StopStrings) -> bool:
    """After every piece exactly the oracle's text is out, and at the end all of it."""
    watch, out, text = kind(stops, include), "", ""
    for piece in pieces:
        text += piece
        visible, matched = watch.push(piece)
        out += visible
        if (out, matched) != oracle(text, stops, include):
            return False
    met = first_stop(text, stops)
    return out + watch.flush() == (oracle(text, stops, include)[0] if met else text)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, max_size=6), STOPS, st.booleans())
def test_shows_and_holds_what_a_search_of_the_whole_text_says(pieces, stops, include):
    assert agrees(pieces, stops, include)


@pytest.mark.parametrize("include", (False, True))
@pytest.mark.parametrize("stops", (("aab",), ("ab", "b"), ("abab", "ba"), ("aabb", "ab"), ("a",), ("\n\n", "\nUser:")))
def test_every_cut_of_a_text(stops, include):
    for text in ("abaababb", "aabaabbab", "\n\nUser:", "x\nUser: \n\n"):
        for cuts in itertools.product((False, True), repeat=len(text) - 1):
            pieces = [text[0]]
            for cut, character in zip(cuts, text[1:], strict=True):
                if cut:
                    pieces.append(character)
                else:
                    pieces[-1] += character
            assert agrees(pieces, stops, include)


def test_nothing_that_begins_a_stop_string_leaks():
    watch = StopStrings(("<|end|>",), include=False)
    assert [watch.push(piece) for piece in ("Hi <", "|e", "nd", "|", "> and more")] == [
        ("Hi ", None),
        ("", None),
        ("", None),
        ("", None),
        ("", "<|end|>"),
    ]
    assert watch.push("later") == ("", "<|end|>")
    assert watch.flush() == ""


def test_a_false_alarm_comes_out_at_once():
    watch = StopStrings(("<|end|>",), include=False)
    assert watch.push("a <|en") == ("a ", None)
    assert watch.push("ough") == ("<|enough", None)


def test_the_end_of_the_answer_releases_what_was_held():
    watch = StopStrings(("\n\nUser:",), include=True)
    assert watch.push("Bye.\n\n") == ("Bye.", None)
    assert watch.flush() == "\n\n"
    assert watch.flush() == ""


def test_the_stop_string_stays_if_asked():
    assert StopStrings(("END", "D"), include=True).push("the END.") == ("the END", "END")
    assert StopStrings(("END", "D"), include=False).push("the END.") == ("the ", "END")


def test_the_one_complete_first_wins_over_a_longer_one_around_it():
    assert StopStrings(("abcdX", "bc"), include=False).push("abcdX") == ("a", "bc")


def test_without_stop_strings_the_text_passes_as_the_same_object():
    text = "".join(["some", " text"])
    visible, matched = StopStrings((), include=False).push(text)
    assert visible is text
    assert matched is None


def test_characters_beyond_ascii():
    assert agrees(["完", "了。", "再", "见👩", "\u200d", "💻!"], ("再见", "👩‍💻"), False)
    assert agrees(["👩", "\u200d", "💻!"], ("👩‍💻",), False)


MUTANTS = {
    "nothing is held": ("shown = len(text) - self._state.depth", "shown = len(text)"),
    "one character too few is held": ("shown = len(text) - self._state.depth", "shown = len(text) - max(0, self._state.depth - 1)"),
    "held longer than needed": ("shown = len(text) - self._state.depth", "shown = max(0, len(text) - 4)"),
    "no way back to a shorter beginning": ("state = state.fallback\n        return", "state = None\n        return"),
    "a stop string inside another is missed": ("child.stop or child.fallback.stop", "child.stop"),
    "the shorter of two that end together": ("child.stop or child.fallback.stop", "child.fallback.stop or child.stop"),
    "text after the match": ("text[: end if", "text[: len(text) if"),
    "state forgotten between pieces": ("text, begin = self._held + text, len(self._held)", "begin = 0"),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_planted_fault_is_caught(fault):
    old, new = MUTANTS[fault]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the fault no longer fits the source: {old!r}"
    namespace = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    kind = cast(Callable[..., StopStrings], namespace["StopStrings"])
    texts = ("".join(letters) for letters in itertools.product("ab", repeat=6))
    stops = (("aab",), ("ab", "b"), ("abab", "ba"), ("aabb", "ab"))
    assert not all(
        agrees([text[:2], text[2:3], text[3:]], some, include, kind)
        for text in texts
        for some in stops
        for include in (False, True)
    )
