"""Options from environment variables, such as HASTEN_MAX_MODEL_LEN for --max-model-len.

Several values of one option are separated by commas. An empty variable is one that is not set.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence

from hasten.cli.options import OptionGroup, OptionValues

PREFIX = "HASTEN_"
# Variables of the project that are no options: they have these names in hasten, its tests and its build.
NO_OPTIONS = (
    *("HASTEN_CACHE", "HASTEN_CPU_ISA", "HASTEN_ENDPOINT_API_KEY", "HASTEN_EXHAUSTIVE", "HASTEN_PYTHON"),
    *("HASTEN_SANITIZE", "HASTEN_TESTS", "HASTEN_EMULATE_AMX", "HASTEN_EMULATE_AVXVNNI"),
)


class EnvironmentWarning(UserWarning):
    """A variable that looks like a misspelt option."""


def read_environment(groups: Sequence[OptionGroup], environment: Mapping[str, str]) -> list[OptionValues]:
    """Return the options of each group that the environment sets.

    Raises ``InvalidOption`` for a value of the wrong form, and warns about a variable whose name is nearly that of an option.
    """
    known = {variable: (index, name) for index, group in enumerate(groups) for name, variable in _variables(group)}
    values: list[OptionValues] = [{} for _ in groups]
    for variable, text in environment.items():
        if variable in known and text:
            index, name = known[variable]
            texts = [part.strip() for part in text.split(",")] if groups[index].is_repeatable(name) else text
            values[index][name] = groups[index].parse(name, texts, variable)
        elif variable.startswith(PREFIX) and variable not in (*known, *NO_OPTIONS):
            near = difflib.get_close_matches(variable[:80], known, n=1, cutoff=0.85)
            if near:
                warnings.warn(f"{variable} is no option; did you mean {near[0]}?", EnvironmentWarning, stacklevel=2)
    return values


def _variables(group: OptionGroup) -> Iterator[tuple[str, str]]:
    """Yield each option's name with its variables: one for every spelling of its flag."""
    for name in group.help:
        for spelling in (name, *group.spellings.get(name, ())):
            if not spelling.startswith("-") or spelling.startswith("--"):
                yield name, PREFIX + spelling.lstrip("-").replace("-", "_").upper()
