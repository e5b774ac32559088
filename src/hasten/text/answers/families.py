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


def syntax_markers(tool: str | None, reasoning: str | None) -> tuple[str, ...]:
    """Return the literal markers of two parsers.

    Those that are special tokens must stay in the text that they read.
    """
    thoughts = None if reasoning is None else reasoning_syntax(reasoning)
    if thoughts is not None and thoughts.tool_syntax is not None:
        tool = thoughts.tool_syntax
    calls = None if tool is None else tool_syntax(tool)
    return (
        *(() if calls is None else (*calls.openers, *calls.markers)),
        *(() if thoughts is None else (thoughts.opener, thoughts.closer)),
    )


def _names(package: ModuleType) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def _syntax(package: ModuleType, name: str, option: str) -> object:
    names = _names(package)
    if name not in names:
        raise InvalidOption(f"{option} has an unknown name", got=name, remedy=nearest(name, names))
    return importlib.import_module(f"{package.__name__}.{name}").SYNTAX
