"""An error message is one printable line of bounded length, whatever value a caller or a file gave."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hasten.core.errors import MAX_MESSAGE, HastenError, InvalidRequest, nearest, show


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("repr")


VALUES: list[Any] = [
    *("x" * 10**7, "\x1b[31mred\x1b[0m", "a\nb\r\nc\td\0", "\ud800", "é 😀 中文", b"\xff" * 10**6, "\x85\u2028\u202e"),
    *(10**5000, -(10**400), Hostile(), [Hostile()], {"a": Hostile()}, ["x" * 10**6] * 10**4, [[[[[[]]]]]], {1: [2] * 10**6}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("part", ["what", "got", "allowed", "remedy"])
def test_a_message_is_one_bounded_printable_line(value: Any, part: str) -> None:
    started = time.thread_time()
    error = InvalidRequest(**{"what": "the value is wrong", part: value})
    assert time.thread_time() - started < 1
    assert len(str(error)) <= MAX_MESSAGE
    assert str(error).isprintable()
    rebuilt = InvalidRequest(error.what, **error.fields())  # as after the way to another process
    assert str(rebuilt) == str(error)


def test_a_long_part_does_not_push_out_the_others() -> None:
    error = HastenError("w" * 5000, got="g" * 5000, allowed="up to 3", remedy="Shorten it")
    assert len(str(error)) <= MAX_MESSAGE
    assert "www... : got" not in str(error) and "; allowed: up to 3. Shorten it." in str(error)


def test_a_message_within_the_bound_is_whole() -> None:
    error = HastenError("w" * 1900, got="\x1b", remedy="Try again")
    assert str(error) == f"{'w' * 1900}: got \\x1b. Try again."


def test_the_nearest_name_of_anything_is_found_at_once() -> None:
    started = time.thread_time()
    for name in ("x" * 10**7, 5, None, b"", Hostile()):
        assert nearest(name, ["left", "right"]) == "Choose one of left, right"
    assert nearest("rigth", ["left", "right"]) == "Did you mean 'right'"
    assert time.thread_time() - started < 1


def test_a_value_is_shown_as_its_repr_or_cut() -> None:
    assert [show(value) for value in (1, "a\n", [1.5], None, ("x",))] == ["1", r"'a\n'", "[1.5]", "None", "('x',)"]
    assert show(10**5000) == "an integer of 16610 bits"
    assert max(len(show(value)) for value in VALUES) <= 80
