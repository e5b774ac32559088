"""Options of a command made from the fields of a dataclass, so that a field is declared once.

An option that was not given is absent from what a command receives: defaults stay where the dataclass has them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hasten.core.errors import InvalidOption

Given = dict[str, Any]  # field name -> value, only of options that were given


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field's value is written. ``parse`` takes one value and raises ``ValueError`` if it is not of the kind."""

    metavar: str
    parse: Callable[[str], Any]
    collect: Callable[[list[Any]], Any] | None = None  # a repeatable option: its values to the field's value
    flag: bool = False


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Some fields of a dataclass as options. A command receives them in its parameter ``name``, as ``Given``."""

    name: str
    title: str
    source: type
    help: Mapping[str, str]  # field name -> help text; these fields, in this order

    def parameters(self) -> list[inspect.Parameter]:
        return [_parameter(self, name, text) for name, text in self.help.items()]

    def take(self, values: dict[str, Any]) -> Given:
        """Moves this group's options out of ``values``. Raises ``InvalidOption`` for text that is not of the field's kind."""
        raw = {name: values.pop(name) for name in self.help}
        return {name: self.parse(name, value) for name, value in raw.items() if value is not None and value != []}

    def parse(self, name: str, value: bool | str | Sequence[str]) -> Any:
        """The field's value from what was written; text for a flag is true or false."""
        kind = kind_of(get_type_hints(self.source)[name])
        if isinstance(value, bool):
            return value
        written = [value] if isinstance(value, str) else list(value)
        try:
            parsed = [kind.parse(item) for item in written]
        except ValueError:
            option = "--" + name.replace("_", "-")
            raise InvalidOption(f"{option} has the wrong form", got=repr(" ".join(written)), allowed=kind.metavar) from None
        return kind.collect(parsed) if kind.collect else parsed[-1]


def with_options(*groups: OptionGroup) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that takes the groups' options besides its own parameters."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        names = {group.name for group in groups}
        own = [parameter for parameter in signature.parameters.values() if parameter.name not in names]
        made = [parameter for group in groups for parameter in group.parameters()]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{group.name: group.take(values) for group in groups}, **values)

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *made]]
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def kind_of(hint: Any) -> Kind:
    """How values of a field of type ``hint`` are written."""
    members = set(get_args(hint)) - {types.NoneType} if get_origin(hint) in (types.UnionType, Union) else {hint}
    if Literal["never"] in members:
        return Kind("true|false|never", lambda text: text if text == "never" else _truth(text))
    if bool in members:
        return Kind("true|false", _truth, flag=True)
    if str in members:
        return Kind("TEXT", str)
    if float in members:
        return Kind("NUMBER", float)
    if int in members:
        return Kind("INTEGER", int)
    (member,) = members
    if get_origin(member) in (dict, Mapping):
        return Kind("ID=VALUE", _pair, dict)
    (item, _) = get_args(member)
    if item is str:
        return Kind("TEXT", str, tuple)
    if item is int:
        return Kind("ID", int, tuple)
    return Kind("ID,ID,...", _ids, tuple)


def _parameter(group: OptionGroup, name: str, text: str) -> inspect.Parameter:
    kind = kind_of(get_type_hints(group.source)[name])
    option = "--" + name.replace("_", "-")
    default = next(field.default for field in dataclasses.fields(group.source) if field.name == name)
    shown = "" if default in (None, (), "") or default is dataclasses.MISSING else f" [default: {str(default).lower()}]"
    more = " May be repeated." if kind.collect else ""
    hint: Any = bool | None if kind.flag else list[str] | None if kind.collect else str | None
    declaration = f"{option}/--no-{option[2:]}" if kind.flag else option
    info = typer.Option(
        declaration,
        metavar=None if kind.flag else kind.metavar,
        help=text + more + shown,
        rich_help_panel=group.title,
        show_default=False,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint, info])


def _truth(text: str) -> bool:
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]


def _pair(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    return int(token), float(value)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(","))
