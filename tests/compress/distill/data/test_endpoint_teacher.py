"""A teacher behind an endpoint: the exact requests, many at a time, its answers in order, and its refusals."""

from __future__ import annotations

import math
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten.compress.distill.data.endpoint_teacher import EndpointTeacher, split_endpoint
from hasten.compress.distill.data.text_teacher import LabelRequest, TextRequest
from hasten.core.errors import HastenError, InvalidOption
from hasten.core.sampling_params import SamplingParams

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})


def echo(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    content = f"{asked.body['messages'][-1]['content']}/{asked.body['seed']}"
    send(handler, completion(content, finish_reason="length" if asked.body["messages"][-1]["content"] == "b" else "stop"))


def test_texts_come_in_order_with_a_request_each() -> None:
    params = SamplingParams(n=2, seed=7, max_tokens=9, temperature=0.5, stop=("END",), logprobs=0)
    with serve(echo) as server:
        teacher = EndpointTeacher(server.url, "m", num_connections=3)
        requests = [TextRequest(prompt, params) for prompt in ("a", "b", MESSAGES)]
        assert all(map(teacher.fits, requests))
        found = teacher.write(requests)
    assert [[text.text for text in texts] for texts in found] == [["a/7", "a/8"], ["b/7", "b/8"], ["Hi/7", "Hi/8"]]
    assert [[text.is_cut for text in texts] for texts in found] == [[False] * 2, [True] * 2, [False] * 2]
    bodies = sorted((asked.body for asked in server.asked), key=lambda body: (len(body["messages"]), str(body)))
    shared = {"model": "m", "stream": False, "max_tokens": 9, "temperature": 0.5, "stop": ["END"]}
    assert bodies[0] == {**shared, "messages": [{"role": "user", "content": "a"}], "seed": 7}
    assert bodies[-1] == {**shared, "messages": list(MESSAGES), "seed": 8} and len(bodies) == 6
    assert teacher.figures == "6 requests | 252 tokens, as the endpoint counts them"


def test_requests_run_together() -> None:
    together = threading.Barrier(4)

    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        together.wait(30)  # breaks unless four requests are open at a time
        send(handler, completion("x"))

    with serve(answer) as server:
        teacher = EndpointTeacher(server.url, "m", num_connections=4)
        assert len(teacher.write([TextRequest(str(i), SamplingParams(seed=i)) for i in range(8)])) == 8


def test_choices_are_the_probabilities_of_the_first_token() -> None:
    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        top = [{"token": "1", "logprob": math.log(0.2)}, {"token": "2", "logprob": math.log(0.6)}]
        send(handler, completion("2", logprobs={"content": [{"top_logprobs": top}]}))

    with serve(answer) as server:
        (found,) = EndpointTeacher(server.url, "m").choose([LabelRequest("Score:", ("1", "2", "3"))])
    assert found == pytest.approx((0.25, 0.75, 0.0))


def test_an_error_ends_the_batch() -> None:
    with serve(lambda handler, asked: send(handler, {"error": {"message": "too long"}}, status=400)) as server:
        teacher = EndpointTeacher(server.url, "m", num_connections=1)
        with pytest.raises(HastenError, match="too long"):
            teacher.write([TextRequest(str(i), SamplingParams(seed=i)) for i in range(50)])
    assert len(server.asked) < 50


def test_what_the_interface_lacks_is_refused() -> None:
    teacher = EndpointTeacher("http://localhost:1/v1", "m")
    with pytest.raises(InvalidOption, match=r"no such sampling settings.*top_k"):
        teacher.fits(TextRequest("a", SamplingParams(top_k=3)))
    with pytest.raises(InvalidOption, match="no token ids"):
        teacher.fits(TextRequest({"prompt_token_ids": [1]}, SamplingParams()))


def test_an_endpoint_is_named_by_model_and_url() -> None:
    assert split_endpoint("my/model@http://host:8000/v1") == ("my/model", "http://host:8000/v1")
    assert split_endpoint("demo") is None and split_endpoint("http://host/v1") is None
