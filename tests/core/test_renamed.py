"""A former spelling of an option or an exit rule is refused, and the error names the new one."""

from __future__ import annotations

import dataclasses

import pytest

from hasten.core.early_exit import EXIT_RULES
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.core.renamed import RENAMED_ENGINE_OPTIONS, RENAMED_EXIT_RULES, remedy_for_unknown
from hasten.core.sampling_params import SamplingParams

FIELDS = {field.name for field in dataclasses.fields(EngineOptions)}


@pytest.mark.parametrize(("old", "new"), RENAMED_ENGINE_OPTIONS.items())
def test_a_renamed_engine_option_names_the_new_one(old: str, new: str) -> None:
    assert old not in FIELDS and new in FIELDS
    with pytest.raises(InvalidOption, match=rf"unknown engine option: got '{old}'\. It was renamed to {new}\.$"):
        EngineOptions.from_dict({old: None})


def test_an_unknown_engine_option_offers_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"got 'quantizaton'\. Did you mean 'quantization'"):
        EngineOptions.from_dict({"quantizaton": None})


@pytest.mark.parametrize(("old", "new"), RENAMED_EXIT_RULES.items())
def test_a_renamed_exit_rule_names_the_new_one(old: str, new: str) -> None:
    assert old not in EXIT_RULES and new in EXIT_RULES
    with pytest.raises(InvalidRequest, match=f"exit_rule='{old}' .*; {old} was renamed to {new}"):
        SamplingParams(exit_rule=old)


def test_an_unknown_exit_rule_was_not_renamed() -> None:
    for rule in ("layers", None, ["layer"]):
        with pytest.raises(InvalidRequest, match="exit_rule=") as error:
            SamplingParams(exit_rule=rule)  # type: ignore[arg-type]
        assert "renamed" not in str(error.value)


def test_a_new_spelling_that_is_no_choice_is_not_offered() -> None:
    assert remedy_for_unknown("window", ["width", "height"], {"window": "seq_len"}) == "Choose one of height, width"
