"""The server that the other tests use."""

import asyncio

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request
from tests.serving.live_server import live_server

from hasten.core.sampling_params import SamplingParams
from hasten.serving.call import open_call
from hasten.serving.openai.errors import write_error
from hasten.serving.surface import Surface

router = APIRouter()


@router.get("/echo/{text}")
async def echo(request: Request, text: str) -> dict[str, str]:
    async with open_call(request, "demo") as call:
        output = await call.llm.generate(text, SamplingParams(max_tokens=4, temperature=0))
        return {"text": output.outputs[0].text}


SURFACE = Surface("test", router, ("/",), write_error)


def test_a_model_answers_several_servers_one_after_the_other(serve, demo_llm):
    expected = asyncio.run(demo_llm.generate("def", SamplingParams(max_tokens=4, temperature=0))).outputs[0].text
    for _ in range(2):
        with serve([SURFACE]) as url:
            assert httpx.get(f"{url}/echo/def").json() == {"text": expected}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/echo/def")


def test_errors_have_the_form_of_the_surface(serve):
    with serve([SURFACE]) as url:
        answer = httpx.get(f"{url}/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"


def test_another_method_is_refused_with_the_one_that_is_allowed(serve):
    with serve([SURFACE]) as url:
        answer = httpx.delete(f"{url}/echo/def")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json()["error"]["message"] == "Method Not Allowed"


def test_an_application_that_cannot_start_fails_the_test():
    async def app(scope, receive, send):
        raise RuntimeError(scope["type"])

    with pytest.raises(AssertionError, match="did not start"), live_server(app, lifespan="on"):
        pytest.fail("it started")
