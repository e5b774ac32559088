"""Prompt templates render as Jinja's own sandbox does, and every mistake is one sentence."""

from __future__ import annotations

import time
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hasten.core.errors import HastenError, InvalidOption, InvalidRequest
from hasten.prompts.base import Variant
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.template import PromptTemplate, shared_process
from hasten.text import template_process

EXAMPLES = [{"input": "2 + 2", "output": "4"}, {"input": "{{ 7 }} & <b>", "output": "seven\n"}]
VALUES: dict[str, Any] = {
    "question": "Why is the sky blue?\n",
    "context": "Light {% scatters %}.",
    "instruction": "翻译成英文",
    "input": "天空",
    "examples": EXAMPLES,
    "input_label": "Q",
    "output_label": "A",
}
BUILT_IN = TemplateLibrary().entries


def sandbox(template: PromptTemplate, variables: dict[str, Any]) -> str:
    """The text by Jinja in this process."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template.text).render({**template.defaults, **variables})


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_equal_jinjas_sandbox(name: str) -> None:
    template = BUILT_IN[name].template
    required = {variable: VALUES[variable] for variable in template.variables}
    everything = {variable: VALUES[variable] for variable in (*template.variables, *template.defaults)}
    for variables in (required, everything, {**required, "examples": []} if "examples" in required else required):
        text = template.render(variables)
        assert text == sandbox(template, variables)
        assert not text.endswith((" ", "\n"))  # the model continues after the last character
        assert "\n\n\n" not in text.replace(VALUES["question"], "?").replace("seven\n", "7")


def test_both_languages_have_the_same_templates_and_variables() -> None:
    english = {name: entry.template for name, entry in BUILT_IN.items() if entry.template.language == "en"}
    chinese = {name: entry.template for name, entry in BUILT_IN.items() if entry.template.language == "zh"}
    assert set(english) == {"qa", "cot", "few_shot", "instruction"}
    assert set(chinese) == {f"{name}_zh" for name in english}
    for name, template in english.items():
        other = chinese[f"{name}_zh"]
        assert (template.variables, template.defaults.keys()) == (other.variables, other.defaults.keys())
        assert any("\u4e00" <= character <= "\u9fff" for character in other.text + "".join(other.defaults.values()))


def test_exact_texts() -> None:
    find = TemplateLibrary().find
    assert find("qa").render({"question": "Who?"}) == "Answer the question.\n\nQuestion: Who?\nAnswer:"
    assert find("qa").render({"question": "Who?", "context": "Ann."}) == (
        "Answer the question.\n\nContext: Ann.\n\nQuestion: Who?\nAnswer:"
    )
    shown = find("few_shot_zh").render({"examples": EXAMPLES[:1], "input": "1 + 1", "instruction": "计算"})
    assert shown == "计算\n\n输入：2 + 2\n输出：4\n\n输入：1 + 1\n输出："
    assert find("instruction").render({"instruction": "Sort.", "input": "b a"}) == (
        "### Instruction:\nSort.\n\n### Input:\nb a\n\n### Response:"
    )


def test_a_template_is_a_variant_with_sorted_variables() -> None:
    template = PromptTemplate("t", "{{ b }}{{ a }}{{ c }}{% for d in a %}{{ d }}{% endfor %}", defaults={"c": "x"})
    variant: Variant = template
    assert (variant.name, template.variables) == ("t", ("a", "b"))
    assert variant.render({"a": "1", "b": "2"}) == "21x1"
    assert template.render({"a": "1", "b": "2", "c": "3"}) == "2131"
    assert {template: 1}[PromptTemplate("t", template.text, defaults={"c": "x"})] == 1


def test_the_system_text_stands_first_and_is_not_a_template() -> None:
    template = PromptTemplate("t", "Hi {{ name }}", system="Be {{ kind }}.")
    assert template.render({"name": "Ann"}) == "Be {{ kind }}.\n\nHi Ann"
    assert template.messages({"name": "Ann"}) == [
        {"role": "system", "content": "Be {{ kind }}."},
        {"role": "user", "content": "Hi Ann"},
    ]
    assert PromptTemplate("t", "Hi").messages({}) == [{"role": "user", "content": "Hi"}]


def test_values_are_never_templates() -> None:
    assert PromptTemplate("t", "{{ a }}").render({"a": "{{ 1 + 1 }}{% raw %}"}) == "{{ 1 + 1 }}{% raw %}"


# ---------------------------------------------------------------- variables


@pytest.mark.parametrize(
    ("variables", "pattern"),
    [
        ({}, r"got missing question\. Set question\."),
        ({"qestion": "x"}, r"got missing question, not read 'qestion'\. Did you mean 'question'"),
        ({"question": "x", "contxt": "y"}, r"got not read 'contxt'\. Did you mean 'context'"),
        (
            {"question": "x", "zzz": "y", "yyy": ""},
            r"not read 'yyy', not read 'zzz'\. Choose one of context, instruction, question",
        ),
        ({"question": 5, "context": None}, r"2 variables of .*'qa' are not texts: got question=5, context=None"),
        ({"question": "\ud800"}, r"1 variables of .* question='\\ud800'"),
        ({"question": [{"input": 5}]}, r"question=\[\{'input': 5\}\]"),
        ({"question": ["text"]}, r"question=\['text'\]"),
        ({5: "x"}, "the variables are not a mapping from names"),
        ("question", "the variables are not a mapping from names"),
    ],
)
def test_wrong_variables_are_named_in_one_error(variables: Any, pattern: str) -> None:
    with pytest.raises(InvalidRequest, match=pattern):
        TemplateLibrary().find("qa").render(variables)


def test_a_template_without_variables_takes_none() -> None:
    with pytest.raises(InvalidRequest, match="not read 'a'"):
        PromptTemplate("t", "Hello").render({"a": "x"})


def test_an_example_that_lacks_a_column_is_an_error_and_no_empty_place() -> None:
    with pytest.raises(InvalidRequest, match=r"'few_shot' refuses these variables: got .*no attribute 'output'"):
        TemplateLibrary().find("few_shot").render({"examples": [{"input": "a"}], "input": "b"})


# ---------------------------------------------------------------- wrong templates


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{{ a", r"prompt template 't' cannot be read: got .*\(line 1\)"),
        ("x\n{% for a in b %}", r"cannot be read: got .*\(line 2\)"),
        ("{{ a | translate }}", r"cannot be read: got No filter named 'translate'"),
        ("{% include 'x' %}{% nonsense %}", "cannot be read: got Encountered unknown tag 'nonsense'"),
    ],
)
def test_a_text_that_is_no_template_is_refused_when_it_is_made(text: str, pattern: str) -> None:
    with pytest.raises(InvalidOption, match=pattern):
        PromptTemplate("t", text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("{% if a %}{{ a | translate }}{% endif %}", "refuses these variables: got No filter named 'translate'"),
        ("{{ a.b.c }}", "has no attribute 'b'"),
        ("{% include a %}", "refuses these variables"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ a }}{{ f() }}", "recursion"),
        (
            "{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}{{ a }}",
            "exceeds its limits.*more than 0.3 s",
        ),
        ("{% for x in range(10 ** 12) %}{% endfor %}{{ a }}", "Range too big"),
        ("{% for x in range(99999) %}{{ a * 100 }}{% endfor %}", "exceeds its limits.*longer than"),
        ("{{ a * 10 ** 10 }}", "exceeds its limits.*too much memory"),
        ("{{ a.__class__.__mro__ }}", "unsafe|undefined|has no attribute"),
        ('{{ a }}{{ "\\ud800" }}', "half of a surrogate pair"),
    ],
)
def test_a_template_that_fails_or_has_no_end_is_one_sentence(text: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = PromptTemplate("t", text)
    if "0.3 s" in pattern:
        monkeypatch.setattr(template_process, "SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(InvalidRequest, match=pattern) as raised:
        template.render({"a": "x"})
    assert time.monotonic() - start < template_process.SECONDS + 3
    message = str(raised.value)
    assert "prompt template 't'" in message and "chat" not in message and len(message) < 1000
    monkeypatch.undo()
    assert PromptTemplate("good", "{{ a }}").render({"a": "x"}) == "x"


def test_a_template_that_loops_while_it_is_compiled_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_process().variable_names("")  # it is running
    monkeypatch.setattr(template_process, "SECONDS", 0.3)
    with pytest.raises(HastenError, match="prompt template 't' exceeds its limits"):
        PromptTemplate("t", "{{ 9 ** (9 ** 9) }}")


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"name": "", "text": "x"}, "name=''"),
        ({"name": "a b", "text": "x"}, "name='a b' .*letters, digits"),
        ({"name": "a", "text": ""}, "text=''"),
        ({"name": "a", "text": "x" * 300_000}, "text="),
        ({"name": "a", "text": "x", "language": "fr"}, "language='fr' .*en, zh"),
        ({"name": "a", "text": "x", "language": "fr", "system": 5}, "2 template fields.*language='fr'.*system=5"),
        ({"name": "a", "text": "{{ b }}", "defaults": {"c": "x"}}, "defaults=.*that the text reads: b.*does not read 'c'"),
        ({"name": "a", "text": "{{ b }}", "defaults": {"b": 5}}, "defaults="),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], pattern: str) -> None:
    with pytest.raises(InvalidOption, match=pattern):
        PromptTemplate(**fields)
