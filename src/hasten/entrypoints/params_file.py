"""``read_params_file``: sampling settings from a YAML or JSON file.

::

    temperature: 0.7
    top_p: 0.9
    stop: ["\\n\\n"]
    logit_bias: {42: -5}

A file names fields of ``SamplingParams`` and nothing else. Scalars are read as in JSON and YAML 1.2: ``no`` is a text, and a quoted
number is a text. No constructor of YAML runs, so a tag in a file makes no object.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from hasten.core.errors import HastenError, InvalidOption, nearest, show
from hasten.core.field_type import FieldType, field_type
from hasten.core.sampling_params import SamplingParams
from hasten.quality.documents import read_text_file
from hasten.quality.yaml_file import check_file_size, compose_yaml

SUFFIXES = (".json", ".yaml", ".yml")
MAX_BYTES = 1 << 20
MAX_VALUES = 1 << 17  # scalars and collections; an alias of YAML counts each time
MAX_DEPTH = 32
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,4})?")
_STANDARD_TAGS = tuple(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}


def read_params_file(file: Path | str) -> dict[str, Any]:
    """Return the settings that a file names, each checked on its own.

    ``SamplingParams(**settings)`` checks them together. Raises ``InvalidOption`` that names the file and the first fault.
    """
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidOption(
            "this is not a file of sampling settings", got=path, allowed=f"a name that ends in {', '.join(SUFFIXES)}"
        )
    check_file_size(path, MAX_BYTES)
    content = read_text_file(path)
    try:
        values = _read_json(content) if path.suffix.lower() == ".json" else _Values().read(compose_yaml(content), depth=0)
        return dict(_settings(values))
    except InvalidOption as fault:
        raise InvalidOption(f"in {path}: {fault.what}", got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None


def _settings(values: object) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each setting. Raises ``InvalidOption`` for an unknown name or a wrong value."""
    types = _types()
    if not isinstance(values, dict):
        raise InvalidOption("sampling settings are not named values", got=show(values), allowed="a mapping from names to values")
    for name, value in values.items():
        if not isinstance(name, str) or name not in types:
            raise InvalidOption("unknown sampling setting", got=show(name), remedy=nearest(name, types))
        try:
            yield name, types[name].read(value)
        except HastenError as fault:  # a settings class within the settings says what is wrong with it
            raise InvalidOption(
                f"the setting {name}: {fault.what}", got=fault.got, allowed=fault.allowed, remedy=fault.remedy
            ) from None
        except Exception:  # the types raise any exception for a wrong value
            raise InvalidOption(f"the setting {name} is out of range", got=show(value), allowed=types[name].allowed) from None


@functools.cache
def _types() -> dict[str, FieldType]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {field.name: field_type(hints[field.name]) for field in dataclasses.fields(SamplingParams)}


def _read_json(content: str) -> object:
    try:
        return json.loads(content, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidOption("this is not JSON", got=error if isinstance(error, ValueError) else "too deep a nesting") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _without_duplicates(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InvalidOption("a key is given twice", got=show(key), remedy="Leave one out")
        result[key] = value
    return result


class _Values:
    """Turns the nodes of a YAML document into values, up to ``MAX_VALUES`` of them."""

    def __init__(self) -> None:
        self._num_left = MAX_VALUES

    def read(self, node: object, depth: int) -> Any:
        self._num_left -= 1
        if self._num_left < 0 or depth > MAX_DEPTH:
            raise InvalidOption("this YAML has too many or too deep values", allowed=f"{MAX_VALUES:,} values, {MAX_DEPTH} levels")
        if isinstance(node, yaml.Node) and not node.tag.startswith(_STANDARD_TAGS):
            raise InvalidOption("a tag of this YAML has no meaning", got=show(node.tag), remedy="Write the value alone")
        if isinstance(node, yaml.MappingNode):
            pairs = ((self._key(key, depth), self.read(value, depth + 1)) for key, value in node.value)
            return _without_duplicates(pairs)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        return None  # an empty document

    def _key(self, node: object, depth: int) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise InvalidOption("a key of this YAML is no text and no number")
        return self.read(node, depth + 1)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:  # quoted, or a block
        return text
    if text.lower() in _CONSTANTS and text in (text.lower(), text.title(), text.upper()):
        return _CONSTANTS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
