"""Requests that name a prompt template instead of a prompt or messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx
import pytest

from hasten.prompts.library import TemplateLibrary
from hasten.serving.openai.surface import openai_surface

NAME = "qa"
VARIABLES = {"question": "What do bees make?"}
GREEDY = {"model": "demo", "temperature": 0, "max_tokens": 6}


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_stands_for_a_prompt_and_for_messages(serve: Callable[..., AbstractContextManager[str]], stream: bool) -> None:
    template = TemplateLibrary().find(NAME)
    own: dict[str, dict[str, object]] = {
        "completions": {"prompt": template.render(VARIABLES)},
        "chat/completions": {"messages": template.messages(VARIABLES)},
    }
    named = {"prompt_template": {"name": NAME, "variables": VARIABLES}}
    with serve([openai_surface()]) as url, httpx.Client(base_url=f"{url}/v1/", timeout=60) as client:
        for path, body in own.items():
            answers = [client.post(path, json={**GREEDY, **each, "stream": stream}) for each in (body, named)]
            assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
            first, second = (re.findall(r'"(?:text|content)": ?"([^"]*)"', answer.text) for answer in answers)
            assert "".join(first) == "".join(second) != ""


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "a", "prompt_template": {"name": NAME, "variables": VARIABLES}}, 400, "prompt"),
        ({"prompt_template": {"name": "none-such"}}, 404, "prompt_template.name"),
        ({"prompt_template": {"name": NAME}}, 400, "prompt_template.variables"),
        ({"prompt_template": {"name": NAME, "variables": {**VARIABLES, "extra": "x"}}}, 400, "prompt_template.variables"),
        ({"prompt_template": {"variables": {}}}, 400, "prompt_template.name"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_an_error(
    serve: Callable[..., AbstractContextManager[str]], body: dict[str, object], status: int, param: str
) -> None:
    with serve([openai_surface()]) as url:
        answer = httpx.post(f"{url}/v1/completions", json={**GREEDY, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
