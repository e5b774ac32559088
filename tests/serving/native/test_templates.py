"""Templates over HTTP give the prompts of the library, and name what does not fit."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.serving.native.conftest import error_of

from hasten.prompts.library import TemplateLibrary
from hasten.prompts.template import PromptTemplate
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.native import templates
from hasten.serving.native.templates import render_messages, render_template

QUESTION = {"question": "What is 2 + 3?"}


@pytest.fixture(scope="module")
def library() -> TemplateLibrary:
    return TemplateLibrary()


def test_all_templates_are_listed(client: httpx.Client, library: TemplateLibrary) -> None:
    listed = {each["name"]: each for each in client.get("/v1/templates").json()["data"]}
    assert listed.keys() == library.entries.keys()
    for name, entry in library.entries.items():
        assert listed[name]["variables"] == list(entry.template.variables)
        assert listed[name]["defaults"] == dict(entry.template.defaults)
        assert listed[name].keys() == {"name", "language", "description", "variables", "defaults"}


def test_a_template_is_rendered(client: httpx.Client, library: TemplateLibrary) -> None:
    template = library.find("cot")
    found = client.post("/v1/templates/render", json={"name": "cot", "variables": QUESTION}).json()
    assert found == {"name": "cot", "prompt": template.render(QUESTION), "messages": template.messages(QUESTION)}
    assert "What is 2 + 3?" in found["prompt"]
    assert asyncio.run(render_template("cot", QUESTION)) == found["prompt"]
    assert asyncio.run(render_messages("cot", QUESTION)) == found["messages"]


def test_a_system_text_is_a_message_of_its_own(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    template = PromptTemplate("polite", "Hello {{ name }}", system="You are polite.")
    monkeypatch.setattr(templates, "_library", lambda: SimpleNamespace(find=lambda name: template))
    found = client.post("/v1/templates/render", json={"name": "polite", "variables": {"name": "Ann"}}).json()
    assert found["prompt"] == "You are polite.\n\nHello Ann"
    assert found["messages"] == [
        {"role": "system", "content": "You are polite."},
        {"role": "user", "content": "Hello Ann"},
    ]


def test_examples_are_a_list(client: httpx.Client, library: TemplateLibrary) -> None:
    template = library.find("few_shot")
    examples = [{"input": "cat", "output": "chat"}, {"input": "dog", "output": "chien"}]
    variables = {name: examples if name == "examples" else "bird" for name in template.variables}
    found = client.post("/v1/templates/render", json={"name": "few_shot", "variables": variables})
    assert found.json()["prompt"] == template.render(variables)


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"name": "kot", "variables": QUESTION}, 404, "name", "Did you mean 'cot'"),
        ({"name": "cot"}, 400, "variables", "missing question"),
        ({"name": "cot", "variables": {**QUESTION, "tone": "kind"}}, 400, "variables", "tone"),
        ({"name": "cot", "variables": {"question": 5}}, 400, "variables.question", "string"),
        ({"name": "cot", "variables": {str(i): "" for i in range(65)}}, 400, "variables", "64"),
        ({"name": "cot", "variables": QUESTION, "model": "demo"}, 400, "model", "unknown field"),
        ({}, 400, "name", "required"),
    ],
)
def test_a_wrong_request_is_refused(client: httpx.Client, body: dict[str, Any], status: int, param: str, message: str) -> None:
    found_status, found_param, found = error_of(client.post("/v1/templates/render", json=body))
    assert (found_status, found_param) == (status, param)
    assert message in found


def test_a_request_that_names_a_template_gets_api_errors() -> None:
    with pytest.raises(ApiError) as unknown:
        asyncio.run(render_template("kot", {}))
    assert (unknown.value.kind, unknown.value.code) == (ErrorKind.NOT_FOUND, "template_not_found")
    for render in (render_template, render_messages):
        with pytest.raises(ApiError) as missing:
            asyncio.run(render("cot", {}))
        assert (missing.value.status, missing.value.param) == (400, "variables")
