"""Valid instances of 300 schemas are accepted token by token, and invalid ones are refused; ``jsonschema`` says which is which."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from tests.exhaustive import SUITES, repeats
from tests.json_schemas import WRITTEN, is_valid, make_instance, make_schema, mutate, write
from tests.sampling.guides.languages import TOKENIZER, make_guide

from hasten.core.errors import InvalidRequest
from hasten.core.structured_outputs import StructuredOutputs

INSTANCES = 4  # of a schema
NUMBERS = range(0, SUITES["schema instances"].full, SUITES["schema instances"].full // repeats("schema instances"))


def is_accepted(schema: Any, text: str) -> bool:
    """Return whether each token of a text is allowed, and the text may end."""
    guide, tokens = make_guide(StructuredOutputs(json=schema)), TOKENIZER.encode(text).ids
    return guide.num_allowed([], tokens) == len(tokens) and guide.is_complete(tokens)


def test_valid_instances_are_accepted_and_invalid_ones_refused() -> None:
    found: Counter[str] = Counter()
    for number in NUMBERS:
        schema = make_schema(number)
        for i in range(INSTANCES):
            draw = random.Random(f"{number} {i}")
            value = make_instance(number, draw)
            if not is_valid(schema, value):  # none is written
                continue
            wrong = next((other for _ in range(30) if not is_valid(schema, other := mutate(value, draw))), value)
            assert is_accepted(schema, text := write(value, draw)), (number, schema, text)
            found["valid"] += 1
            if wrong != value:
                assert not is_accepted(schema, text := write(wrong, draw)), (number, schema, text)
                found["invalid"] += 1
    assert min(found.values()) > 3.3 * len(NUMBERS), found  # more than 1,000 of each in the whole suite


@pytest.mark.parametrize("number", range(len(WRITTEN)))
def test_texts_that_are_no_json_or_go_on_are_refused(number: int) -> None:
    schema, instances = WRITTEN[number]
    for value in instances[:1]:
        text = write(value, random.Random(0))
        assert is_accepted(schema, text)
        for wrong in (text[:-1], text + " ", "\n" + text, text + text, text + ",", text.replace('"', "'") + "x", ""):
            # A number may be shorter or longer.
            if not (isinstance(value, int | float) and wrong in (text[:-1], text + text)):
                assert not is_accepted(schema, wrong), wrong


def test_blanks_without_end_are_refused() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    for text in ("[1, 2]", "[1,2]", "[\n1,\n2\n]", "[" + "\n" + " " * 40 + "1]", "[\n\t\t1]"):
        assert is_accepted(schema, text), text
    for text in ("[1,  2]", "[1,\n\n2]", "[\n" + " " * 41 + "1]", "[ \n1]", "[\r1]"):
        assert not is_accepted(schema, text), text
    compact = make_guide(StructuredOutputs(json=schema, disable_any_whitespace=True))
    tokens = TOKENIZER.encode("[1, 2]").ids
    assert TOKENIZER.decode(tokens[: compact.num_allowed([], tokens)]) == "[1,"


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"type": "array", "contains": {"type": "integer"}},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"if": {"type": "string"}, "then": {"minLength": 3}},
        {"dependentRequired": {"a": ["b"]}},
        {"unevaluatedProperties": False},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "string", "format": "regex"},
        {"type": "string", "pattern": "^(?=a)b"},
        {"$ref": "#/$defs/missing"},
    ],
    ids=str,
)
def test_a_feature_that_a_grammar_has_not_is_refused_rather_than_ignored(schema: Any) -> None:
    with pytest.raises(InvalidRequest, match="the json of structured_outputs cannot be used"):
        make_guide(StructuredOutputs(json=schema))
