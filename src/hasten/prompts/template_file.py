"""Reading of template files: one Jinja template, or templates in YAML.

A ``.jinja`` or ``.j2`` file is the text of one template, named as the file; a comment at its start describes it. A ``.yaml`` or
``.yml`` file has one template or a list::

    name: greet
    description: Greets someone by name.
    text: Hello {{ name }}, {{ wish }}!
    defaults: {wish: good morning}
    language: en
    system: You are polite.

Every scalar is read as a text. No constructor of YAML runs, so a tag in a file makes no object.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hasten.core.errors import InvalidOption, nearest, show
from hasten.prompts.template import PromptTemplate
from hasten.quality.documents import read_text_file
from hasten.quality.yaml_file import check_file_size, compose_yaml

JINJA_SUFFIXES = (".jinja", ".j2")
YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = JINJA_SUFFIXES + YAML_SUFFIXES
MAX_BYTES = 1 << 18  # of a file
MAX_TEMPLATES = 256  # per file
_FIELDS = tuple(field.name for field in dataclasses.fields(PromptTemplate))
_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")  # YAML reads them as line breaks unless they are escaped
_COMMENT = re.compile(r"\s*\{#-?(.*?)-?#\}", re.DOTALL)


def read_templates(file: Path) -> list[PromptTemplate]:
    """Return the templates of a file, in order.

    Raises ``InvalidOption`` that names the file and the first fault.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise InvalidOption(
            "this is not a file of prompt templates", got=file, allowed=f"a name that ends in {', '.join(SUFFIXES)}"
        )
    check_file_size(file, MAX_BYTES, "template file")
    content = read_text_file(file)
    try:
        if file.suffix.lower() in YAML_SUFFIXES:
            return _read_yaml(content)
        comment = _COMMENT.match(content)
        description = " ".join(comment[1].split())[:1000] if comment else ""
        return [PromptTemplate(file.stem, content, description)]
    except InvalidOption as fault:
        raise InvalidOption(f"in {file}: {fault.what}", got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None


def template_yaml(template: PromptTemplate) -> str:
    """Return the template as a YAML file that ``read_templates`` reads."""
    values = {name: value for name in _FIELDS if (value := getattr(template, name))}
    text: str = yaml.serialize(_node(values), Dumper=yaml.SafeDumper, allow_unicode=True, width=MAX_BYTES)
    return text


def _node(value: object) -> yaml.Node:
    """Return the YAML of a text or a mapping.

    A text of several lines is a block where YAML can write it as one.
    """
    if isinstance(value, Mapping):
        return yaml.MappingNode("tag:yaml.org,2002:map", [(_node(name), _node(item)) for name, item in value.items()])
    text = str(value)
    style = '"' if _OTHER_BREAKS.search(text) else "|" if "\n" in text else None
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)


def _read_yaml(content: str) -> list[PromptTemplate]:
    root = compose_yaml(content)
    nodes = root.value if isinstance(root, yaml.SequenceNode) else [root]
    if not 1 <= len(nodes) <= MAX_TEMPLATES:
        raise InvalidOption("a wrong number of templates", got=len(nodes), allowed=f"1 to {MAX_TEMPLATES}")
    templates: list[PromptTemplate] = []
    for number, node in enumerate(nodes, 1):
        try:
            template = _read_template(node)
        except InvalidOption as fault:
            what = f"template {number}: {fault.what}" if len(nodes) > 1 else fault.what
            raise InvalidOption(what, got=fault.got, allowed=fault.allowed, remedy=fault.remedy) from None
        if any(template.name == other.name for other in templates):
            raise InvalidOption("two templates have the same name", got=show(template.name), remedy="Rename one of them")
        templates.append(template)
    return templates


def _read_template(node: object) -> PromptTemplate:
    if not isinstance(node, yaml.MappingNode):
        raise InvalidOption("a template is not a mapping", allowed=f"the keys {', '.join(_FIELDS)}")
    fields: dict[str, Any] = {}
    for key, value in _items(node).items():
        if key not in _FIELDS:
            raise InvalidOption("the key of a template has no meaning", got=show(key), remedy=nearest(key, _FIELDS))
        if key == "defaults" and isinstance(value, yaml.MappingNode):
            fields[key] = {name: _text(text, name) for name, text in _items(value).items()}
        else:
            fields[key] = _text(value, key)
    missing = [key for key in ("name", "text") if key not in fields]
    if missing:
        raise InvalidOption(f"the key {missing[0]} is missing", got=f"the keys {', '.join(fields) or 'none'}")
    return PromptTemplate(**fields)


def _items(node: yaml.MappingNode) -> dict[str, yaml.Node]:
    items: dict[str, yaml.Node] = {}
    for node_of_key, value in node.value:
        key = _text(node_of_key, "a key")
        if key in items:
            raise InvalidOption("a key is given twice", got=show(key), remedy="Leave one out")
        items[key] = value
    return items


def _text(node: yaml.Node, name: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":null"):
        raise InvalidOption(f"{show(name)} is not a text", got=f"line {node.start_mark.line + 1}", remedy="Write a text after it")
    return str(node.value)
