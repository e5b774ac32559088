"""Command options generated from the fields of a dataclass, so that each field is declared once.

A command receives only the options that were passed. The defaults stay in the dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hasten.core.errors import InvalidOption, show

OptionValues = dict[str, Any]  # field name -> value, of the options that were passed
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class OptionType:
    """How a field's value is written.

    ``parse`` converts one text and raises ``KeyError`` or ``ValueError`` if it cannot.
    """

    metavar: str
    parse: Callable[[str], Any]
    collect: Callable[[list[Any]], Any] | None = None  # combines the values of a repeatable option
    flag: bool = False


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Some fields of a dataclass as options.

    A command receives them as ``OptionValues`` in its parameter ``name``.
    """

    name: str
    title: str
    source: type
    help: Mapping[str, str]  # field name -> help text, in the order of ``--help``
    spellings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # field name -> further flags

    def without(self, names: Iterable[str]) -> OptionGroup:
        """Return a group that lacks the fields ``names``."""
        return dataclasses.replace(self, help={name: text for name, text in self.help.items() if name not in names})

    def pop_values(self, values: dict[str, Any]) -> OptionValues:
        """Remove this group's options from ``values`` and return those that were passed.

        Raises ``InvalidOption``.
        """
        raw = {name: values.pop(name) for name in self.help}
        return {name: self.parse(name, value) for name, value in raw.items() if value is not None and value != []}

    def is_repeatable(self, name: str) -> bool:
        """Whether a field takes several values."""
        return option_type_of(get_type_hints(self.source)[name]).collect is not None

    def parse(self, name: str, value: bool | str | Sequence[str], label: str | None = None) -> Any:
        """Return the field's value for its text or texts.

        ``label``: what an error calls the option; None: its flag. Raises ``InvalidOption`` for text of the wrong form.
        """
        if isinstance(value, bool):
            return value
        option_type = option_type_of(get_type_hints(self.source)[name])
        texts = [value] if isinstance(value, str) else list(value)
        try:
            parsed = [option_type.parse(text) for text in texts]
        except (KeyError, ValueError):
            got, allowed = show(" ".join(texts)), option_type.metavar
            raise InvalidOption(f"{label or _flag(name)} has the wrong form", got=got, allowed=allowed) from None
        return option_type.collect(parsed) if option_type.collect else parsed[-1]


def with_options(*groups: OptionGroup) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the groups' options to a command's own parameters."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        group_names = {group.name for group in groups}
        own = [parameter for parameter in signature.parameters.values() if parameter.name not in group_names]
        generated = [_parameter(group, name, text) for group in groups for name, text in group.help.items()]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{group.name: group.pop_values(values) for group in groups}, **values)

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *generated]]
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def option_type_of(hint: Any) -> OptionType:
    """Return how values of a field with the type ``hint`` are written."""
    members = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return next(option_type for member, option_type in _OPTION_TYPES.items() if member in members)


def _parameter(group: OptionGroup, name: str, text: str) -> inspect.Parameter:
    option_type = option_type_of(get_type_hints(group.source)[name])
    flag = _flag(name)
    default = next(field.default for field in dataclasses.fields(group.source) if field.name == name)
    if option_type.collect:
        text += " May be repeated."
    if default not in (None, (), "", dataclasses.MISSING):
        text += f" [default: {str(default).lower()}]"
    hint: Any = bool | None if option_type.flag else list[str] | None if option_type.collect else str | None
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if option_type.flag else flag,
        *group.spellings.get(name, ()),
        metavar=None if option_type.flag else option_type.metavar,
        help=text,
        rich_help_panel=group.title,
        show_default=False,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[hint, info])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.lower()]


def _id_and_value(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    return int(token_id), float(value)


# Type of a field -> how its values are written. The first type that a union contains decides.
_OPTION_TYPES: dict[Any, OptionType] = {
    Literal["never"]: OptionType("true|false|never", lambda text: text if text == "never" else _boolean(text)),
    bool: OptionType("true|false", _boolean, flag=True),
    str: OptionType("TEXT", str),
    float: OptionType("NUMBER", float),
    int: OptionType("INTEGER", int),
    Mapping[int, float]: OptionType("ID=VALUE", _id_and_value, dict),
    tuple[str, ...]: OptionType("TEXT", str, tuple),
    tuple[int, ...]: OptionType("ID", int, tuple),
    tuple[tuple[int, ...], ...]: OptionType("ID,ID,...", lambda text: tuple(int(item) for item in text.split(",")), tuple),
}
