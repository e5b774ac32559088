"""``TemplateRenderer``: renders templates in Jinja's sandbox, as transformers renders chat templates.

``TemplateProcess`` runs this file as a program, so that a template that takes too long can be killed. It imports Jinja and the
standard library only. The messages (``hasten.core.program``)::

    -> {"template": "{{ bos_token }}...", "variables": {...}, "max_length": 65536, "strict": false}
                                               null variables ask for the names; strict: an undefined value is a fault
    <- {"text": "..."} or {"names": [...]} or {"fault": "output", "message": "..."}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hasten.core.program import Limits, answer_messages

LIMITS = Limits(memory=256 << 20, memory_per_input_byte=32, cpu_seconds=4)
_MAX_MESSAGE = 500  # characters of an error
_MAX_COMPILED = 64  # templates that are kept


class TemplateRenderer:
    """Renders templates by their source, which is compiled once."""

    def __init__(self) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }
        self._environments = {False: environment, True: environment.overlay(undefined=jinja2.StrictUndefined)}
        self._compiled: dict[tuple[str, bool], jinja2.Template] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the text, the names of the template's variables, or the fault. Raises nothing."""
        source, variables = request["template"], request["variables"]
        try:
            template = self._compile(source, request["strict"])
            if variables is None:
                return {"names": sorted(meta.find_undeclared_variables(self._environments[False].parse(source)))}
            return _joined(template.generate(variables), request["max_length"])
        except jinja2.TemplateSyntaxError as error:
            return {"fault": "syntax", "message": f"{error} (line {error.lineno})"[:_MAX_MESSAGE]}
        except MemoryError:
            return {"fault": "memory", "message": "it takes too much memory"}
        except Exception as error:  # a template can raise errors of any class
            return {"fault": "template", "message": (str(error) or type(error).__name__)[:_MAX_MESSAGE]}

    def _compile(self, source: str, strict: bool) -> jinja2.Template:
        if (source, strict) not in self._compiled:
            if len(self._compiled) == _MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]  # the oldest
            self._compiled[source, strict] = self._environments[strict].from_string(source)
        return self._compiled[source, strict]


def _joined(pieces: Iterator[str], max_length: int) -> dict[str, Any]:
    parts, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > max_length:
            return {"fault": "output", "message": f"its text is longer than {max_length} characters"}
        parts.append(piece)
    return {"text": "".join(parts)}


class _GenerationBlock(Extension):
    """``{% generation %}``, which marks the assistant's words for training; they are rendered as they are."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Macro) -> str:
        return caller()


class _TemplateDict:
    """``dict`` without the attributes of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # without ``self``, which a template may use as a name
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def main() -> None:
    """Answer messages until the caller closes."""
    answer_messages(TemplateRenderer().answer, LIMITS)


if __name__ == "__main__":
    main()
