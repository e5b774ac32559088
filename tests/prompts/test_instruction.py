"""Instructions in any template, answers of proposers in any form, and what is dropped."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import InvalidRequest
from hasten.prompts.instruction import InstructionFilter, instruction_of, read_answer, with_instruction
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.template import PromptTemplate

TEMPLATES = {
    "plain": "Item {{ input }}:",
    "tag that strips": "\n  {%- if input %}Item {{ input }}{% endif %}",
    "expression that strips": "{{- input }}",
    "comment that strips": "{#- about -#}\n{{ input }}",
    "block": "{% if input %}\nItem {{ input }}\n{% endif %}\n",
    "sets an instruction": "{% set instruction = 'own' %}{{ instruction }} {{ input }}",
    "macro": "{% macro instruction_(x) %}<{{ x }}>{% endmacro %}{{ instruction_(input) }}",
    "raw": "{% raw %}{{ instruction }}{% endraw %} {{ input }}",
    "starts with a line break": "\nItem {{ input }}",
}
JINJA = "Never write {{ input }}, {% raw %} or {#: {% for x in range(10**9) %}"


def variant(text: str, **fields: object) -> TemplateVariant:
    return TemplateVariant("initial", PromptTemplate("initial", text, **fields))


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("instruction", ["Answer briefly.", JINJA, "Two\n\nparagraphs", "  spaces  "])
def test_an_instruction_stands_before_any_template(text: str, instruction: str) -> None:
    initial = variant(text)
    found = with_instruction(initial, instruction, "found", ["input"])
    alone = initial.render({"input": "ä"})
    assert found.render({"input": "ä"}) == f"{instruction}\n\n{alone}"
    assert found.name == "found" and instruction_of(initial.template) == ""
    if "instruction" not in text:
        assert instruction_of(found.template) == instruction
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assert plain.from_string(found.template.text).render(found.template.defaults, input="ä").startswith(instruction)


@pytest.mark.parametrize("name", ["qa", "qa_zh", "cot", "few_shot", "few_shot_zh"])
def test_it_takes_the_place_of_the_instruction_of_a_template(name: str) -> None:
    initial = TemplateVariant(name, TemplateLibrary().find(name))
    found = with_instruction(initial, JINJA, "found", ["question"])
    values = {"question": "why?", "input": "x", "examples": []}
    given = {key: value for key, value in values.items() if key in initial.template.variables}
    assert found.template.render(given) == initial.template.render({**given, "instruction": JINJA})
    assert (instruction_of(found.template), found.template.text) == (JINJA, initial.template.text)
    again = with_instruction(found, "Other.", "again", ["question"])
    assert again.template.render(given) == initial.template.render({**given, "instruction": "Other."})


def test_a_required_instruction_is_filled_in() -> None:
    initial = TemplateVariant("instruction", TemplateLibrary().find("instruction"))
    with pytest.raises(InvalidRequest, match="missing instruction"):
        initial.render({"input": "x"})
    assert with_instruction(initial, "Do it.", "found", ["input"]).render({"input": "x"}).startswith("### Instruction:\nDo it.\n")


def test_an_instruction_of_the_items_stays() -> None:
    initial = TemplateVariant("instruction", TemplateLibrary().find("instruction"))
    item = {"instruction": "Add.", "input": "1 2"}
    found = with_instruction(initial, "Be exact.", "found", item)
    assert found.render(item) == f"Be exact.\n\n{initial.render(item)}"
    assert with_instruction(found, "Be brief.", "again", item).render(item) == f"Be brief.\n\n{found.render(item)}"


def test_the_system_text_stays_first() -> None:
    found = with_instruction(variant("{{ input }}", system="You are polite."), "Answer.", "found", ["input"])
    assert found.render({"input": "x"}) == "You are polite.\n\nAnswer.\n\nx"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Name it.", "Name it."),
        (" Name it.\n\nInput: 3\nOutput: 4", "Name it."),
        ("Name it\nbriefly.\n \nMore", "Name it\nbriefly."),
        ("Name it.</INS>", "Name it."),
        ("First.\n\nSecond.</INS> And so on", "First.\n\nSecond."),
        ("<INS>First.\n\nSecond.", "First.\n\nSecond."),
        ("Sure! <INS> Name it. </INS> I hope it helps.", "Name it."),
        ("I begin with <INS> and end with </INS>: <INS>Name it.</INS>", "Name it."),
        ("<think>perhaps <INS>x</INS>\n\nor</think>\n\n<INS>Name it.</INS>", "Name it."),
        ("<think>endless", "<think>endless"),
        ("<INS></INS>", ""),
        ("", ""),
        (" \n\n ", ""),
        ("</INS></INS>", ""),
    ],
)
def test_an_instruction_is_read_from_any_answer(answer: str, expected: str) -> None:
    assert read_answer(answer) == expected


@given(st.lists(st.sampled_from(["<INS>", "</INS>", "a", "\n", " ", "</think>", "\ud800"])).map("".join))
def test_no_answer_breaks_the_reader(answer: str) -> None:
    found = read_answer(answer)
    assert found == found.strip() and found in answer and "</INS>" not in found


def test_a_hostile_answer_is_read_at_once() -> None:
    for mark in ("<INS>", "</INS>", "\n \n", "\n " * 3, " "):
        assert len(read_answer(mark * 700_000)) < 2**22


def make_filter(**fields: object) -> InstructionFilter:
    settings = {"max_tokens": 4, "answers": ["yes", " 42 "], "known": ["Be brief."]}
    return InstructionFilter(lambda text: len(text.split()), **{**settings, **fields})


def test_what_is_no_new_instruction_is_dropped_and_counted() -> None:
    screen = make_filter()
    answers = [
        *("Say it.", "Say  it.", "Be\nbrief.", "", "\ud800", "one two three four", "one two three four five", "x" * 20_001),
        *("Say:\n yes ", "42", "Say yes or no.", "Say it!"),
    ]
    assert list(screen.instructions(answers)) == ["Say it.", "one two three four", "Say yes or no.", "Say it!"]
    assert screen.dropped == {"known": 2, "empty": 2, "too long": 2, "with an answer": 2}
    assert list(screen.instructions(["Say it!"])) == []  # of an earlier call
