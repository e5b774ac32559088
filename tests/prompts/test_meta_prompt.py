"""Meta-prompts: what they show, in which order, in both languages."""

from __future__ import annotations

import re

import pytest

from hasten.prompts.meta_prompt import FOLDER, KnownInstruction, improvement_prompt, induction_prompt
from hasten.prompts.task import PromptItem
from hasten.prompts.template import LANGUAGES
from hasten.prompts.template_file import read_templates

ITEMS = [
    PromptItem(1, {"input": "hot {{ x }}"}, ("cold", "chilly")),
    PromptItem(2, {"word": "big", "language": "French"}, ("petit",)),
]
KNOWN = [KnownInstruction("Be {% brief %}.", 0.756), KnownInstruction("Be right.", 0.1234), KnownInstruction("Be <b>.", 1.0)]


def test_every_language_has_the_same_meta_prompts() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(LANGUAGES)
    for language in LANGUAGES:
        templates = read_templates(FOLDER / f"{language}.yaml")
        assert [(template.name, template.language, template.variables) for template in templates] == [
            ("induce", language, ("examples",)),
            ("improve", language, ("examples", "known")),
        ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_inputs_and_outputs_are_shown(language: str) -> None:
    colon = ": " if language == "en" else "："
    for text in (induction_prompt(language, ITEMS), improvement_prompt(language, KNOWN, ITEMS)):
        assert text.endswith("\n\n<INS>") and "</INS>" in text and "chilly" not in text
        pairs = [f"{colon}hot {{{{ x }}}}\n", f"{colon}cold\n", f"{colon}word: big\nlanguage: French\n", f"{colon}petit\n"]
        places = [text.index(part) for part in pairs]
        assert places == sorted(places)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("as_percent", "scores"), [(True, ["12", "76", "100"]), (False, ["0.1234", "0.756", "1"])], ids=["percent", "number"]
)
def test_instructions_stand_worst_first(language: str, as_percent: bool, scores: list[str]) -> None:
    text = improvement_prompt(language, KNOWN, ITEMS, as_percent=as_percent)
    assert re.findall(r"<INS>(Be.*?)</INS>", text) == ["Be right.", "Be {% brief %}.", "Be <b>."]
    assert re.findall(r"(?:Score: |得分：)(\S+)\n", text) == scores
