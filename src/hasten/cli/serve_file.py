"""``read_serve_file``: the options and models of a server from a YAML file.

::

    port: 8080
    keep_alive: 600
    max_model_len: 8192
    models:
      small: ./models/small
      large:
        path: ./models/large
        quantization: int8

A file has options of the server and of engines by their names on the command line, and each value as it is written there. Options
beside a model's path are those of its engine alone. No constructor of YAML runs, so a tag in a file makes no object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hasten.cli.options import OptionGroup, OptionValues
from hasten.core.errors import InvalidOption, show
from hasten.core.renamed import RENAMED_ENGINE_OPTIONS, remedy_for_unknown
from hasten.quality.documents import read_text_file
from hasten.quality.yaml_file import check_file_size, compose_yaml

MAX_BYTES = 1 << 20
_NULL = "tag:yaml.org,2002:null"
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)


@dataclass(frozen=True, slots=True)
class NamedModel:
    """``options``: of its engine alone."""

    name: str
    path: str
    options: OptionValues = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServeFile:
    values: list[OptionValues]  # of each group
    models: tuple[NamedModel, ...] = ()


def read_serve_file(path: Path, groups: Sequence[OptionGroup], engine: OptionGroup) -> ServeFile:
    """Return the options of each group that a file sets, and its models.

    ``engine``: the one of the groups whose options a model may have. Raises ``InvalidOption`` that names the file.
    """
    check_file_size(path, MAX_BYTES, "configuration file")
    try:
        return _Reader(groups, engine).read(compose_yaml(read_text_file(path)))
    except InvalidOption as fault:
        raise InvalidOption(f"in {path}: {fault.what}", got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None


class _Reader:
    def __init__(self, groups: Sequence[OptionGroup], engine: OptionGroup) -> None:
        self._groups, self._engine = groups, engine

    def read(self, root: yaml.Node | None) -> ServeFile:
        values: list[OptionValues] = [{} for _ in self._groups]
        models: tuple[NamedModel, ...] = ()
        for key, node in _pairs(root, "a configuration file") if root is not None else ():
            if key == "models":
                models = tuple(self._models(node))
            else:
                index = self._option(key, self._groups, "models")
                _set(values[index], self._groups[index], key, node)
        return ServeFile(values, models)

    def _models(self, node: yaml.Node) -> Iterator[NamedModel]:
        for name, model in _pairs(node, "models", as_written=True):
            if isinstance(model, yaml.ScalarNode):
                yield NamedModel(name, _text(model, f"the path of {name}"))
                continue
            path, options = None, OptionValues()
            for key, value in _pairs(model, f"the model {name}"):
                if key == "path":
                    path = _text(value, f"the path of {name}")
                else:
                    self._option(key, [self._engine], "path")
                    _set(options, self._engine, key, value)
            if not path:
                raise InvalidOption(f"the model {name} has no path", allowed="a folder, a GGUF file, a hub id or demo")
            yield NamedModel(name, path, options)

    def _option(self, name: str, groups: Sequence[OptionGroup], own: str) -> int:
        """Return the index of the group that has an option."""
        for index, group in enumerate(groups):
            if name in group.help and name != "config":
                return index
        known = [own, *(name for group in groups for name in group.help if name != "config")]
        raise InvalidOption("unknown option", got=show(name), remedy=remedy_for_unknown(name, known, RENAMED_ENGINE_OPTIONS))


def _set(values: OptionValues, group: OptionGroup, name: str, node: yaml.Node) -> None:
    """Set one option. A null leaves it to the default."""
    if isinstance(node, yaml.SequenceNode) and group.is_repeatable(name):
        _check_tag(node)
        values[name] = group.parse(name, [_text(item, name) for item in node.value], name)
    elif not _is_null(node):
        values[name] = group.parse(name, _text(node, name), name)


def _pairs(node: yaml.Node, subject: str, *, as_written: bool = False) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the keys and values of a mapping. ``as_written``: otherwise "-" in a key is "_"."""
    _check_tag(node)
    if not isinstance(node, yaml.MappingNode):
        raise InvalidOption(f"{subject} has no named values", got=_shown(node), allowed="a mapping from names to values")
    seen = set()
    for key_node, value in node.value:
        key = _text(key_node, "a name")
        key = key if as_written else key.replace("-", "_")
        if key in seen:
            raise InvalidOption(f"{subject} names something twice", got=show(key), remedy="Leave one out")
        seen.add(key)
        yield key, value


def _text(node: yaml.Node, subject: str) -> str:
    _check_tag(node)
    if not isinstance(node, yaml.ScalarNode) or _is_null(node) or not node.value:
        raise InvalidOption(f"{subject} is no single value", got=_shown(node), allowed="a text or a number")
    return str(node.value)


def _check_tag(node: yaml.Node) -> None:
    if node.tag not in _TAGS:
        raise InvalidOption("a tag of this YAML has no meaning", got=show(node.tag), remedy="Write the value alone")


def _shown(node: yaml.Node) -> str:
    return (
        show(node.value)
        if isinstance(node, yaml.ScalarNode)
        else "a list"
        if isinstance(node, yaml.SequenceNode)
        else "named values"
    )


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL
