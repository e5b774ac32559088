"""``CallShape``: the text around a call's name and arguments, from which a grammar is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """The text of one argument that is not inside JSON. ``{name}`` stands for its name.

    ``strings``: how text stands there: as it is up to ``after``, or between quotes.
    """

    before: str
    after: str
    separator: str = ""
    strings: Literal["raw", "json", "python", "gemma"] = "raw"


@dataclass(frozen=True, slots=True)
class CallShape:
    """``first`` (``before`` arguments ``after``) ``separator`` ... ``last``. ``{name}`` stands for the tool's name."""

    before: str
    after: str
    separator: str = ""
    first: str = ""
    last: str = ""
    parameters: ParameterShape | None = None  # None: the arguments are a JSON object
    trigger: str = field(default="")  # the literal that begins calls; empty where none does
