"""``CallShape``: the text around a call's name and arguments, from which a grammar is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """The text of one argument that is not inside JSON. ``{name}`` stands for its name.

    ``strings``: how values stand there: text as it is and the rest as JSON, as Python literals, or as Gemma writes them.
    ``{is_text}`` stands for "true" where the value is text, else "false".
    """

    before: str
    after: str
    separator: str = ""
    strings: Literal["raw", "python", "gemma"] = "raw"


@dataclass(frozen=True, slots=True)
class CallShape:
    """``first`` (``before`` arguments ``after``) ``separator`` ... ``last``.

    ``{name}`` stands for the tool's name,
    ``{number}`` for a number.
    """

    before: str
    after: str
    separator: str = ""
    first: str = ""
    last: str = ""
    parameters: ParameterShape | None = None  # None: the arguments are a JSON object
    trigger: str = ""  # the literal that begins calls; empty where none does
