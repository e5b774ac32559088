"""Templates of a user's file replace the built-in ones; wrong ones are refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.compress.distill.data import augment, feedback, instruct
from hasten.compress.distill.data.ask_templates import read_ask_templates
from hasten.core.errors import HastenError

TRIALS = {"augment": augment.TRIAL, "instruct": instruct.TRIAL, "feedback": feedback.TRIAL}


@pytest.mark.parametrize("command", TRIALS)
def test_built_in_templates_begin_with_their_instruction(command: str) -> None:
    """What follows differs from request to request, and the prefix cache keeps what is equal."""
    templates = read_ask_templates(command, TRIALS[command])
    for name, variables in TRIALS[command].items():
        text = templates.render(name, variables)
        assert len(text.partition("?")[0]) > 100 and text == text.strip()


def test_a_file_replaces_the_templates_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- name: output\n  text: 'Mine: {{ input }}'\n")
    templates = read_ask_templates("augment", TRIALS["augment"], tmp_path / "mine.yaml")
    assert templates.render("output", {"input": "a", "examples": []}) == "Mine: a"
    assert templates.render("input", {"examples": []}).startswith("All of these")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- name: outputs\n  text: x\n", "Did you mean 'output'"),
        ("- name: output\n  text: '{{ inputs }}'\n", "missing inputs"),
        ("- name: output\n  text: '{% if %}'\n", "cannot be read"),
        ("x", "not a mapping"),
    ],
)
def test_a_wrong_file_is_one_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(HastenError) as caught:
        read_ask_templates("augment", TRIALS["augment"], tmp_path / "mine.yaml")
    assert message in str(caught.value)
