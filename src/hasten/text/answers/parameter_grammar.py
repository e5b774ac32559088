"""``ParameterGrammar``: the grammar of arguments that do not stand in one JSON object.

They come in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hasten.core.tool_definition import ToolDefinition
from hasten.text.answers.call_shape import ParameterShape
from hasten.text.answers.grammar_rules import GrammarRules
from hasten.text.answers.typed_value import argument_types, is_text, schema_types

# Exponents of three digits follow one digit, so that no number is infinite.
_NUMBER = (
    r"/-?((0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE]([-+]?[0-9]{1,2}|-[0-9]{3}))?"
    r"|[1-9](\.[0-9]{1,30})?[eE]\+?([12][0-9]{2}|30[0-7]))/"
)
_PYTHON = {
    "PY_STRING": r"""/"([^"\\\n]|\\(.|\n))*"/ | /'([^'\\\n]|\\(.|\n))*'/""",
    "PY_INTEGER": r"/-?(0|[1-9][0-9]{0,30})/",
    "PY_NUMBER": _NUMBER,
    "py_list": '"[" (py_value (", " py_value)*)? "]"',
    "py_dict": '"{" (PY_STRING ": " py_value (", " PY_STRING ": " py_value)*)? "}"',
    "py_value": 'PY_STRING | PY_NUMBER | "True" | "False" | "None" | py_list | py_dict',
}
_PYTHON_TYPES = {
    "string": "PY_STRING",
    "integer": "PY_INTEGER",
    "number": "PY_NUMBER",
    "boolean": '("True" | "False")',
    "null": '"None"',
    "array": "py_list",
    "object": "py_dict",
}
_GEMMA = {
    "GM_INTEGER": r"/-?(0|[1-9][0-9]{0,30})/",
    "GM_NUMBER": _NUMBER,
    "GM_KEY": r"/[^:,{}\[\]<|\s]+/",
    "gm_list": '"[" (gm_value ("," gm_value)*)? "]"',
    "gm_dict": '"{" (GM_KEY ":" gm_value ("," GM_KEY ":" gm_value)*)? "}"',
    "gm_value": 'gm_string | GM_NUMBER | "true" | "false" | "null" | "None" | gm_list | gm_dict',
}
_GEMMA_TYPES = {
    "string": "gm_string",
    "integer": "GM_INTEGER",
    "number": "GM_NUMBER",
    "boolean": '("true" | "false")',
    "null": '("null" | "None")',
    "array": "gm_list",
    "object": "gm_dict",
}
_MAX_ITEM_DEPTH = 3  # of arrays in arrays whose items have types
_QUOTE = '<|"|>'
_WORDS = {"boolean": '"true" | "false" | "True" | "False"', "null": '"null" | "None"'}  # as templates print them


class ParameterGrammar:
    """The rules of one tool's arguments; ``number`` tells its rules from those of other tools."""

    def __init__(self, tool: ToolDefinition, shape: ParameterShape, rules: GrammarRules, number: int) -> None:
        self._tool, self._shape, self._rules, self._number = tool, shape, rules, number

    def add(self) -> str:
        """Add the rules, and return the name of the first."""
        names = list(self._tool.properties)
        if self._shape.strings == "gemma":
            names.sort()  # its template sorts them
        # Rules from the last argument to the first: ``first`` where none came before, ``more`` where some did.
        first = self._rules.add(f"first_{self._number}_{len(names)}", '""')
        more = self._rules.add(f"more_{self._number}_{len(names)}", '""')
        required = set(self._tool.parameters.get("required", ()))
        for position in range(len(names) - 1, -1, -1):
            argument = self._argument(names[position], position)
            separator = self._rules.literal(self._shape.separator)
            skipped = ("", "") if names[position] in required else (f" | {first}", f" | {more}")
            first = self._rules.add(f"first_{self._number}_{position}", f"{argument} {more}{skipped[0]}")
            more = self._rules.add(f"more_{self._number}_{position}", f"{separator} {argument} {more}{skipped[1]}")
        return first

    def _argument(self, name: str, position: int) -> str:
        """Return the rule of one argument with what stands before and after it."""
        types = argument_types(self._tool, name)
        kinds = [True] if is_text(types) else [False] if "string" not in types else [True, False]
        alternatives = []
        for is_string in kinds if "{is_text}" in self._shape.before else [kinds[0]]:
            text = self._shape.before.replace("{name}", name).replace("{is_text}", "true" if is_string else "false")
            alternatives.append(f"{self._rules.literal(text)} {self._value(name, types, is_string)}")
        return self._rules.add(f"argument_{self._number}_{position}", " | ".join(alternatives))

    def _value(self, name: str, types: tuple[str, ...], is_string: bool) -> str:
        after = self._rules.literal(self._shape.after)
        if self._shape.strings == "python":
            self._add_all(_PYTHON)
            return f"{self._typed(self._tool.properties[name], _PYTHON_TYPES, 'py_value', ', ')} {after}"
        if self._shape.strings == "gemma":
            self._add_all(_GEMMA)
            quoted = self._rules.text_until(_QUOTE)
            self._rules.add("gm_string", f"{self._rules.literal(_QUOTE)} {quoted}")
            return f"{self._typed(self._tool.properties[name], _GEMMA_TYPES, 'gm_value', ',')} {after}"
        if is_string:
            choices = _texts(self._tool.properties.get(name))
            if choices:
                return f"({' | '.join(map(self._rules.literal, choices))}) {after}"
            return self._rules.text_until(self._shape.after)
        words = [_WORDS[each] for each in types if each in _WORDS]
        if set(types) <= _WORDS.keys():
            return f"({' | '.join(words)}) {after}"
        return f"({' | '.join(['%json ' + json.dumps(self._schema(name), ensure_ascii=False), *words])}) {after}"

    def _typed(self, schema: object, types: Mapping[str, str], any_value: str, comma: str, depth: int = 0) -> str:
        """Return the expression of a value of a schema's types, and of the types of the items of arrays."""
        if choices := _texts(schema):
            in_gemma = types is _GEMMA_TYPES
            texts = [f"{_QUOTE}{each}{_QUOTE}" if in_gemma else json.dumps(each, ensure_ascii=False) for each in choices]
            return f"({' | '.join(map(self._rules.literal, texts))})"
        found = []
        for each in schema_types(schema, self._tool.parameters):
            items = schema.get("items") if isinstance(schema, Mapping) else None
            if each == "array" and isinstance(items, Mapping) and depth < _MAX_ITEM_DEPTH:
                item = self._typed(items, types, any_value, comma, depth + 1)
                found.append(f'("[" ({item} ("{comma}" {item})*)? "]")')
            elif each in types:
                found.append(types[each])
        return f"({' | '.join(found) or any_value})"

    def _schema(self, name: str) -> dict[str, Any]:
        """Return the schema of an argument, with the definitions that it may refer to."""
        schema = self._tool.properties[name]
        root = {key: self._tool.parameters[key] for key in ("$defs", "definitions") if key in self._tool.parameters}
        spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        return {**root, **(schema if isinstance(schema, Mapping) else {}), "x-guidance": spacing}

    def _add_all(self, rules: Mapping[str, str]) -> None:
        for name, expression in rules.items():
            self._rules.add(name, expression)


def _texts(schema: object) -> list[str]:
    """Return the texts of an enumeration of texts; empty for any other schema."""
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    return list(values) if isinstance(values, list) and all(isinstance(each, str) and each for each in values) else []
