"""Finding a family's syntax by its name. The names are those of vLLM's parsers."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from hasten.core.errors import InvalidOption, nearest
from hasten.text.answers import reasoning, tools
from hasten.text.answers.syntax import ReasoningSyntax, ToolSyntax


def tool_parser_names() -> tuple[str, ...]:
    return _names(tools)


def reasoning_parser_names() -> tuple[str, ...]:
    return _names(reasoning)


@cache
def tool_syntax(name: str) -> ToolSyntax:
    """Return a syntax of tool calls. Raises ``InvalidOption`` for an unknown name."""
    syntax = _syntax(tools, name, "tool_call_parser")
    assert isinstance(syntax, ToolSyntax)
    return syntax


@cache
def reasoning_syntax(name: str) -> ReasoningSyntax:
    """Return a syntax of thoughts. Raises ``InvalidOption`` for an unknown name."""
    syntax = _syntax(reasoning, name, "reasoning_parser")
    assert isinstance(syntax, ReasoningSyntax)
    return syntax


def _names(package: ModuleType) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def _syntax(package: ModuleType, name: str, option: str) -> object:
    names = _names(package)
    if name not in names:
        raise InvalidOption(f"{option} has an unknown name", got=name, remedy=nearest(name, names))
    return importlib.import_module(f"{package.__name__}.{name}").SYNTAX
