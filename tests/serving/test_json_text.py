"""JSON of strangers: the same values as Python's parser where both read a text, and bounded in every direction."""

import contextlib
import json
import math
import re
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hasten.serving import json_text
from hasten.serving.api_error import ApiError
from hasten.serving.json_text import Nesting, nesting, parse_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
BRACKETED = st.text(st.sampled_from('[]{}"\\a,:'), max_size=8)
VALUES = st.recursive(
    SCALARS | BRACKETED, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(BRACKETED, inner, max_size=4), max_leaves=30
)


def slow_nesting(text: bytes) -> Nesting:
    """The same, byte by byte."""
    depth = deepest = containers = strings = 0
    in_string = is_escaped = False
    for byte in text:
        if in_string:
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C:
                is_escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string, strings = True, strings + 1
        elif byte in b"[{":
            depth, containers = depth + 1, containers + 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return Nesting(deepest, containers, strings)


def is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode())
    except ValueError:
        return False
    return True


@pytest.fixture(params=[1, 2, 3, 7, 1 << 18])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Texts are looked at in parts; small ones cut strings and escapes everywhere."""
    monkeypatch.setattr(json_text, "_PART", request.param)
    return request.param


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
@example(["\\", '\\"', '"[', "\\\\[", {"[": "]"}], False, None)
def test_nesting_is_that_of_the_slow_count(part: int, value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert nesting(text) == slow_nesting(text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('[]{}"\\a,:1 '), max_size=24))
def test_nesting_of_any_text_is_right_up_to_its_fault(part: int, text: str) -> None:
    """A prefix of a JSON text: the parser goes no deeper than its brackets say."""
    data = text.encode()
    try:
        json.loads(text)
        stop = len(text)
    except json.JSONDecodeError as error:
        stop = error.pos
    found, bound = nesting(data), slow_nesting(data[:stop])
    assert found.depth >= bound.depth and found.num_containers >= bound.num_containers and found.num_strings >= bound.num_strings


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escapes that are cut at the end of a part."""
    monkeypatch.setattr(json_text, "_PART", 2)
    monkeypatch.setattr(json_text, "_end_of_part", lambda text, start: min(len(text), start + 2))
    text = rb'["a\"[["]'
    assert nesting(text) != slow_nesting(text)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_values_are_those_of_the_library(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode(), 500) == json.loads(text) == value


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["\\ud83d", "\\ude00", "\\uD800", "\\uDfFf", "\\u0041", "\\\\", "u", "d83d", '\\"', "é", "\\n"]), max_size=8
    )
)
@example(["\\ud83d", "\\\\", "\\ude00"])
@example(["\\ud83d", "\\ud83d", "\\ude00", "\\ude00"])
@example(["\\\\", "u", "d83d"])
def test_halves_of_surrogate_pairs_are_refused(part: int, pieces: list[str]) -> None:
    text = f'["{"".join(pieces)}"]'
    found = json.loads(text)
    try:
        found[0].encode()
    except UnicodeEncodeError:
        with pytest.raises(ApiError, match="half of a surrogate pair"):
            parse_json(text.encode(), 8)
    else:
        assert parse_json(text.encode(), 8) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{}x", "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b"[NaN]", "NaN is no number"),
        (b"[Infinity]", "Infinity is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e400]", "a number is too large"),
        (b"[-1e999]", "a number is too large"),
        (b"[" + b"9" * 41 + b"]", "a number is too large"),
        (b"[" + b"9" * 5000 + b"]", "a number is too large"),
        (b"[0." + b"9" * 500 + b"]", "a number is too large"),
        (b"[01]", "not JSON"),
        (b"[+1]", "not JSON"),
        (b"[.5]", "not JSON"),
        (b'{"n":1,"n":2}', "the name 'n' stands twice"),
        (b'{"a":{"n":1,"\\u006e":2}}', "the name 'n' stands twice"),
        (b'{"' + b"n" * 5000 + b'":1,"' + b"n" * 5000 + b'":1}', "stands twice"),
        (b'{"\x1b[0m":1,"\x1b[0m":1}', "not JSON"),
        (b'{"\\u001b[0m":1,"\\u001b[0m":1}', r"the name '\\x1b"),
        (b'["\xff"]', "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        ('["a"]'.encode("utf-16"), "not UTF-8"),
        ('["a"]'.encode("utf-16-le"), "not JSON"),
        ('["a"]'.encode("utf-32-le"), "not JSON"),
        (b'\xef\xbb\xbf["a"]', "not JSON"),
        (b'["a\nb"]', "not JSON"),
        (b'["\x00"]', "not JSON"),
        (b'["\\x41"]', "not JSON"),
        (b"[" * 65 + b"]" * 65, "nested 65 levels deep; allowed: up to 64"),
        (b"[" * 100_000 + b"]" * 100_000, "nested 100000 levels deep"),
        (b'{"a":' * 100_000, "nested 100000 levels deep"),
        (b"[" + b"[]," * (1 << 16) + b"1]", "65537 arrays and objects; allowed: up to 65536"),
        (b"[" + b"{}," * (1 << 16) + b"1]", "arrays and objects; allowed"),
        (b"[" + b'"",' * (1 << 17) + b'""]', "131073 strings; allowed: up to 131072"),
    ],
)
def test_other_texts_are_refused_in_a_short_sentence(text: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=re.escape(message) if "\\" not in message else message) as caught:
        parse_json(text, 64)
    assert caught.value.status == 400 and len(caught.value.message) < 300 and caught.value.message.isprintable()


def test_what_stands_at_the_limits_passes() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64, 64)
    assert len(parse_json(b"[" + b"[]," * ((1 << 16) - 2) + b"[]]", 64)) == (1 << 16) - 1
    assert len(parse_json(b"[" + b'"",' * ((1 << 17) - 1) + b'""]', 64)) == 1 << 17
    assert parse_json(b"[" + b"9" * 40 + b"]", 64) == [10**40 - 1]
    assert parse_json(b"[1e308, -0.0, 1e-400]", 64) == [1e308, -0.0, 0.0]
    assert math.copysign(1, parse_json(b"-0.0", 64)) == -1


def test_four_mebibytes_take_no_more_than_a_second() -> None:
    """The slowest kinds, CPU time of this thread: several times what was measured, far below a pass in Python over their bytes."""
    size = 4 << 20
    texts = [
        b"[" + b"1," * (size // 2) + b"1]",
        b"[" * size,
        b'"' * size,
        (b"[" * 60 + b"]" * 60) * (size // 120),
        b'["' + b'\\"' * (size // 2),
    ]
    for text in texts:
        before = time.thread_time()
        with contextlib.suppress(ApiError):
            parse_json(text, 64)
        assert time.thread_time() - before < 3, text[:20]
    assert is_json(texts[0])
