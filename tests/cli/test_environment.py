"""Options from the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hasten.cli.environment import NO_OPTIONS, EnvironmentWarning, read_environment
from hasten.cli.serve import GROUPS
from hasten.core.errors import InvalidOption

ROOT = Path(__file__).parents[2]


def test_every_option_is_a_variable():
    variables = {f"HASTEN_{name.upper()}": "" for group in GROUPS for name in group.help}
    assert read_environment(GROUPS, variables) == [{}, {}, {}], "an empty variable is one that is not set"
    found = read_environment(
        GROUPS,
        {
            "HASTEN_MODEL": "a,b",
            "HASTEN_DRAIN_TIMEOUT": "2.5",
            "HASTEN_INSECURE": "yes",
            "HASTEN_THREADS": "3",
            "HASTEN_API_KEY": "k",
        },
    )
    assert found == [{"model": ("a", "b")}, {"drain_timeout": 2.5, "insecure": True, "api_keys": ("k",)}, {"threads": 3}]


def test_a_wrong_value_names_its_variable():
    with pytest.raises(InvalidOption, match="HASTEN_PORT has the wrong form"):
        read_environment(GROUPS, {"HASTEN_PORT": "http"})


@pytest.mark.parametrize(
    "variable, near", [("HASTEN_MAX_MODEL_LENGTH", "HASTEN_MAX_MODEL_LEN"), ("HASTEN_API_KEYFILE", "HASTEN_API_KEY_FILE")]
)
def test_a_misspelt_variable_gets_a_warning(variable, near):
    with pytest.warns(EnvironmentWarning, match=f"{variable} is no option; did you mean {near}"):
        read_environment(GROUPS, {variable: "1"})


@pytest.mark.parametrize("variable", [*NO_OPTIONS, "HASTEN_SOMETHING_ELSE", "VLLM_API_KEY", "PORT"])
def test_other_variables_are_left_alone(variable):
    assert read_environment(GROUPS, {variable: "1"}) == [{}, {}, {}]


def test_no_variable_of_the_project_is_an_option():
    """Every variable that the code reads is known as none of the options."""
    read = set()
    for folder in ("src", "tests", "benchmarks", "docs"):
        for file in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"environ(?:\.get\(|\[|\.setdefault\()\"(HASTEN_\w+)\"", file.read_text(encoding="utf-8")))
    assert "HASTEN_EXHAUSTIVE" in read
    assert read <= set(NO_OPTIONS)
    assert not set(NO_OPTIONS) & {f"HASTEN_{name.upper()}" for group in GROUPS for name in group.help}
