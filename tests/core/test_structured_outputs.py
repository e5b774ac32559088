"""``StructuredOutputs``: exactly one form, within limits, from texts, mappings and types of Python."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import msgpack
import pydantic
import pytest
from typing_extensions import TypedDict  # Pydantic reads that of typing from Python 3.12 on

from hasten.core.errors import MAX_MESSAGE, HastenError, InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import MAX_CHOICES, MAX_DEPTH, MAX_SOURCE, StructuredOutputs

FORMS: dict[str, Any] = {
    "json": '{"type": "integer"}',
    "json_object": True,
    "regex": "[a-z]+",
    "choice": ("yes", "no"),
    "grammar": 'start: "a"',
}


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(ge=1)


@dataclasses.dataclass
class Person:
    name: str
    age: int | None
    home: Address


class Movie(TypedDict):
    title: str
    kind: Literal["film", "series"]


class Unclear:
    """A class that Pydantic does not describe."""


def nested(depth: int, key: str = "items") -> Any:
    """Return a schema of as many objects inside each other."""
    schema: Any = {}
    for _ in range(depth - 1):
        schema = {key: schema}
    return schema


def refused(*, settings: type = StructuredOutputs, **fields: Any) -> str:
    """Return the message that refuses these settings."""
    with pytest.raises(InvalidRequest) as error:
        settings(**fields)
    message = str(error.value)
    assert len(message) <= MAX_MESSAGE
    assert message.isprintable()
    return message


@pytest.mark.parametrize("name", FORMS)
def test_each_form_alone_is_right(name: str) -> None:
    form = StructuredOutputs(**{name: FORMS[name]})
    assert form.form == name
    assert getattr(form, name) == FORMS[name]


def test_no_form_and_every_pair_of_forms_are_refused() -> None:
    assert "exactly one of json, json_object, regex, choice, grammar" in refused()
    for first in FORMS:
        for second in FORMS:
            if first != second:
                message = refused(**{first: FORMS[first], second: FORMS[second]})
                assert f"{first}=" in message
                assert f"{second}=" in message


@pytest.mark.parametrize("fields", [{"json_object": False}, {"choice": ()}, {"choice": []}, {"regex": None}])
def test_an_empty_form_is_none(fields: dict[str, Any]) -> None:
    assert "exactly one of" in refused(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": ""},
        {"grammar": ""},
        {"json": ""},
        {"choice": ("a", "")},
        {"regex": "x" * (MAX_SOURCE + 1)},
        {"grammar": "x" * (MAX_SOURCE + 1)},
        {"json": json.dumps({"const": "x" * MAX_SOURCE})},
        {"json": {"const": "x" * MAX_SOURCE}},
        {"choice": ["x"] * (MAX_CHOICES + 1)},
        {"choice": ["x" * 40_000, "y" * 40_000]},
        {"regex": 3},
        {"choice": 3},
        {"regex": "\ud800"},
        {"json": {"const": "\ud800"}},
        {"json": {"const": float("nan")}},
        {"json": "{"},
        {"json": "[1]"},
        {"json": "3"},
        {"json": '"x"'},
        {"json": "null"},
        {"json": 3},
        {"json": {1, 2}},
        {"json": {"const": object()}},
        {"json": {"const": {("a", "b"): 1}}},
        {"json": object()},
        {"json": Unclear},
        {"json": "[" * 30_000},
        {"json": '{"a":' * 5_000 + "1" + "}" * 5_000},
        {"json": nested(MAX_DEPTH + 1)},
        {"json": json.dumps({"allOf": [nested(MAX_DEPTH - 1)]})},
        {"regex": "a", "disable_any_whitespace": True},
        {"choice": ("a",), "disable_any_whitespace": True},
        {"grammar": 'start: "a"', "disable_any_whitespace": True},
        {"json_object": True, "disable_any_whitespace": 3},
    ],
    # The processes of a test run must agree on the names, and an object shows its address.
    ids=lambda fields: re.sub(r"0x\w+", "", str(fields)[:50].encode("ascii", "backslashreplace").decode()),
)
def test_a_wrong_value_is_refused_in_a_sentence_that_names_it(fields: dict[str, Any]) -> None:
    name = "disable_any_whitespace" if "disable_any_whitespace" in fields else next(iter(fields))
    assert name in refused(**fields)


def test_a_value_at_the_limit_is_right() -> None:
    assert StructuredOutputs(json=nested(MAX_DEPTH))
    assert StructuredOutputs(regex="x" * MAX_SOURCE)
    assert len(StructuredOutputs(choice=["x" * 16] * MAX_CHOICES).choice) == MAX_CHOICES


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    assert "json" in refused(json=schema)


@pytest.mark.parametrize(
    ("described", "valid", "wrong"),
    [
        (Address, {"street": "a", "number": 1}, {"street": "a", "number": 0}),
        (Person, {"name": "a", "age": None, "home": {"street": "a", "number": 2}}, {"name": "a", "age": 1}),
        (Movie, {"title": "a", "kind": "film"}, {"title": "a", "kind": "play"}),
        (list[int], [1, 2], ["a"]),
        (dict[str, list[Address]], {"a": [{"street": "b", "number": 3}]}, {"a": 1}),
        (Literal["a", "b"], "a", "c"),
        (int | None, None, "a"),
        ({"type": "boolean"}, True, 1),
        ('{"type": "boolean"}', False, 0),
        (True, None, None),
        ("true", 1, None),
    ],
    ids=str,
)
def test_a_type_of_python_gives_its_schema(described: Any, valid: Any, wrong: Any) -> None:
    if described is True:  # a schema in JSON, but no type of Python
        assert "json" in refused(json=described)
        return
    text = StructuredOutputs(json=described).json
    assert text is not None
    check = jsonschema.Draft202012Validator(json.loads(text))
    assert check.is_valid(valid)
    assert wrong is None or not check.is_valid(wrong)


def test_characters_of_a_schema_are_kept() -> None:
    assert StructuredOutputs(json={"const": "你é"}).json == '{"const": "你é"}'


def test_sampling_params_take_named_values_and_give_them_back() -> None:
    params = SamplingParams.from_dict({"structured_outputs": {"choice": ["a", "b"]}, "max_tokens": 3})
    assert params.structured_outputs == StructuredOutputs(choice=("a", "b"))
    assert params.is_guided
    assert not SamplingParams().is_guided
    for name, value in FORMS.items():
        params = SamplingParams(structured_outputs=StructuredOutputs(**{name: value}), max_tokens=3)
        packed = msgpack.packb(dataclasses.asdict(params), use_bin_type=True)
        assert SamplingParams.from_dict(msgpack.unpackb(packed, strict_map_key=False)) == params


@pytest.mark.parametrize(
    "value",
    [3, "a", ["choice"], {"choices": ["a"]}, {"regex": 3}, {"regex": "a", "grammar": "b"}, {}, {1: 2}, FORMS],
    ids=str,
)
def test_sampling_params_refuse_what_is_no_form(value: Any) -> None:
    assert "structured_outputs" in refused(settings=SamplingParams, structured_outputs=value)


def test_a_form_has_an_end_token() -> None:
    assert "ignore_eos" in refused(settings=SamplingParams, structured_outputs={"json_object": True}, ignore_eos=True)


def test_equal_forms_are_equal_keys() -> None:
    make: list[Callable[[], StructuredOutputs]] = [
        lambda: StructuredOutputs(choice=["a", "b"]),
        lambda: StructuredOutputs(json={"type": "integer"}),
    ]
    for form in make:
        assert len({form(), form()}) == 1
    assert issubclass(InvalidRequest, HastenError)
