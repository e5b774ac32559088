"""Generate and its stream: the output of the model in process, in TGI's form."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.tgi.conftest import frames_of

from hasten import LLM, RequestOutput, SamplingParams
from hasten.core.errors import CapacityError
from hasten.core.output import CompletionOutput, Delta
from hasten.core.result import FinishReason
from hasten.entrypoints.async_llm import AsyncLLM

PROMPT = "def f("


def generate(tgi: httpx.Client, inputs: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    response = tgi.post("/generate", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return dict(response.json())


def stream(tgi: httpx.Client, inputs: str = PROMPT, **parameters: Any) -> list[dict[str, Any]]:
    return frames_of(tgi.post("/generate_stream", json={"inputs": inputs, "parameters": parameters}))


def expect(llm: LLM, inputs: str = PROMPT, **params: Any) -> tuple[RequestOutput, CompletionOutput]:
    settings = {"temperature": 0, "max_tokens": 20, "include_stop_str_in_output": True, "logprobs": 0, **params}
    (output,) = llm.generate([inputs], SamplingParams(**settings), use_tqdm=False)
    return output, output.outputs[0]


def finish_of(completion: CompletionOutput) -> str:
    if completion.finish_reason is FinishReason.LENGTH:
        return "length"
    return "eos_token" if completion.stop_reason is None else "stop_sequence"


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # TGI's parameters, and the engine's settings
    "default": ({}, {}),
    "nulls": ({"temperature": None, "stop": None, "grammar": None, "seed": None, "watermark": None}, {}),
    "length": ({"max_new_tokens": 7}, {"max_tokens": 7}),
    "do_sample false": ({"do_sample": False}, {}),
    "do_sample": ({"do_sample": True, "seed": 3}, {"temperature": 1, "seed": 3}),
    "temperature": ({"temperature": 0.5, "seed": 3}, {"temperature": 0.5, "seed": 3}),
    "top_k": ({"top_k": 4, "seed": 1}, {"temperature": 1, "top_k": 4, "seed": 1}),
    "top_p": ({"top_p": 0.8, "seed": 1}, {"temperature": 1, "top_p": 0.8, "seed": 1}),
    "typical_p": ({"typical_p": 0.7, "seed": 1}, {"temperature": 1, "typical_p": 0.7, "seed": 1}),
    "penalties": (
        {"repetition_penalty": 1.5, "frequency_penalty": 0.4},
        {"repetition_penalty": 1.5, "frequency_penalty": 0.4},
    ),
    "stop": ({"stop": ["Retu"], "max_new_tokens": 60}, {"stop": ("Retu",), "max_tokens": 60}),
    "regex": ({"grammar": {"type": "regex", "value": "[a-c]{3}"}}, {"structured_outputs": {"regex": "[a-c]{3}"}}),
    "json": (
        {"grammar": {"type": "json", "value": {"type": "boolean"}}},
        {"structured_outputs": {"json": '{"type": "boolean"}'}},
    ),
    "json text": (
        {"grammar": {"type": "json", "value": '{"type": "boolean"}'}},
        {"structured_outputs": {"json": '{"type": "boolean"}'}},
    ),
    "json_schema": (
        {"grammar": {"type": "json_schema", "value": {"name": "flag", "schema": {"type": "boolean"}}}},
        {"structured_outputs": {"json": '{"type": "boolean"}'}},
    ),
    "ignore_eos_token": ({"ignore_eos_token": True, "max_new_tokens": 30}, {"ignore_eos": True, "max_tokens": 30}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_the_model(tgi: httpx.Client, llm: LLM, case: str) -> None:
    parameters, params = CASES[case]
    output, completion = expect(llm, **params)
    assert generate(tgi, **parameters) == {"generated_text": completion.text}

    found = generate(tgi, **parameters, details=True)
    details = found["details"]
    assert found["generated_text"] == completion.text
    assert details["finish_reason"] == finish_of(completion)
    assert details["generated_tokens"] == len(completion.token_ids)
    assert [token["id"] for token in details["tokens"]] == list(completion.token_ids)
    assert [token["logprob"] for token in details["tokens"]] == [each.logprob for each in completion.logprobs or ()]
    assert details["seed"] == (output.seed if params.get("temperature") else None)
    assert (details["prefill"], details.keys() & {"top_tokens", "best_of_sequences"}) == ([], set())


@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_the_answer_in_parts(tgi: httpx.Client, case: str) -> None:
    parameters, _ = CASES[case]
    whole = generate(tgi, **parameters, details=True, top_n_tokens=2)
    frames = stream(tgi, **parameters, details=True, top_n_tokens=2)
    assert [frame["index"] for frame in frames] == list(range(1, len(frames) + 1))
    assert [frame["token"] for frame in frames] == whole["details"]["tokens"]
    assert [frame["top_tokens"] for frame in frames] == whole["details"]["top_tokens"]
    assert {(frame["generated_text"], frame["details"]) for frame in frames[:-1]} <= {(None, None)}
    assert frames[-1]["generated_text"] == whole["generated_text"]
    expected = {name: whole["details"][name] for name in ("finish_reason", "generated_tokens", "seed")}
    assert frames[-1]["details"] == {
        **expected,
        "input_length": len(tgi.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]),
    }
    assert "".join(frame["token"]["text"] for frame in frames if not frame["token"]["special"]) == whole["generated_text"]


def test_a_stream_without_details_has_the_text_alone(tgi: httpx.Client) -> None:
    frames = stream(tgi, max_new_tokens=5)
    assert frames[0].keys() == {"index", "token", "generated_text", "details"}
    assert frames[0]["token"].keys() == {"id", "text", "logprob", "special"}
    assert [frame["details"] for frame in frames] == [None] * 5
    assert frames[-1]["generated_text"] == generate(tgi, max_new_tokens=5)["generated_text"]


def test_the_top_tokens_are_the_most_likely_ones(tgi: httpx.Client, llm: LLM) -> None:
    _, completion = expect(llm, logprobs=3, max_tokens=4)
    found = generate(tgi, max_new_tokens=4, top_n_tokens=3, details=True)["details"]["top_tokens"]
    for row, expected in zip(found, completion.logprobs or (), strict=True):
        assert [(token["id"], token["logprob"]) for token in row] == list(expected.top)
        assert [token["text"] for token in row] == [llm.tokenizer.decode([i], skip_special_tokens=False) for i, _ in expected.top]


def test_the_prefill_has_the_log_probabilities_of_the_prompt(tgi: httpx.Client, llm: LLM) -> None:
    token_ids = llm.tokenizer.encode(PROMPT)
    (score,) = llm.score({"prompt_token_ids": token_ids[:1]}, [{"token_ids": token_ids[1:]}])
    for options in ({"details": True}, {}):  # TGI returns details for decoder_input_details alone, too
        prefill = generate(tgi, max_new_tokens=1, decoder_input_details=True, **options)["details"]["prefill"]
        assert [token["id"] for token in prefill] == token_ids
        assert "".join(token["text"] for token in prefill) == "<|endoftext|>" + PROMPT
        assert prefill[0]["logprob"] is None
        assert [token["logprob"] for token in prefill[1:]] == pytest.approx(score.logprobs, abs=1e-5)


@pytest.mark.parametrize("truncate", [1, 3, 400])
def test_truncate_reads_the_last_tokens(tgi: httpx.Client, llm: LLM, truncate: int) -> None:
    inputs = PROMPT + "    # one\n    # two\n" * 60
    token_ids = llm.tokenizer.encode(inputs)[-truncate:]
    (output,) = llm.generate([{"prompt_token_ids": token_ids}], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
    found = generate(tgi, inputs, truncate=truncate, max_new_tokens=6, details=True, decoder_input_details=True)
    assert [token["id"] for token in found["details"]["prefill"]] == token_ids
    assert found["generated_text"] == output.outputs[0].text
    assert stream(tgi, inputs, truncate=truncate, max_new_tokens=6)[-1]["generated_text"] == output.outputs[0].text


def test_the_full_text_begins_with_the_prompt(tgi: httpx.Client) -> None:
    text = generate(tgi)["generated_text"]
    assert generate(tgi, return_full_text=True)["generated_text"] == PROMPT + text
    frames = stream(tgi, return_full_text=True)
    assert frames[-1]["generated_text"] == PROMPT + text
    assert "".join(frame["token"]["text"] for frame in frames) == text


def test_the_root_answers_a_list_or_a_stream(tgi: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 5, "details": True}}
    whole = tgi.post("/generate", json=body).json()
    assert tgi.post("/", json=body).json() == tgi.post("/", json=body | {"stream": False}).json() == [whole]
    assert tgi.post("/", json=body | {"stream": True}).content == tgi.post("/generate_stream", json=body).content
    assert tgi.post("/", json={"inputs": PROMPT, "parameters": None, "model": "demo"}).json() == [generate(tgi)]


def test_an_end_token_is_a_special_token(tgi: httpx.Client, demo_llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is made to answer "x", its end token: the text lacks the token, and its frame has it."""
    stream_of = demo_llm.stream

    def ending(prompt: Any, params: SamplingParams, **options: Any) -> AsyncGenerator[Delta, None]:
        allowed = params.replace(allowed_token_ids=(0, 87), logit_bias={87: 5.0}, temperature=0)
        return stream_of(prompt, allowed.replace(logit_bias={0: 100.0}), **options)

    monkeypatch.setattr(demo_llm, "stream", ending)
    (frame,) = stream(tgi, details=True)
    assert frame["token"] | {"logprob": 0} == {"id": 0, "text": "<|endoftext|>", "logprob": 0, "special": True}
    assert (frame["generated_text"], frame["details"]["finish_reason"]) == ("", "eos_token")


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["héé", "a 🙂", "naïve", "中文", "\n", " x", "�"]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 4), max_size=8),
)
def test_texts_of_tokens_join_however_deltas_are_cut(
    tgi: httpx.Client, demo_llm: AsyncLLM, llm: LLM, pieces: list[str], cuts: list[int]
) -> None:
    """Speculation puts several tokens into one delta, and characters lie in several tokens."""
    token_ids, text = llm.tokenizer.encode_fragment("".join(pieces)), "".join(pieces)
    output, _ = expect(llm, max_tokens=1)
    finished = CompletionOutput(index=0, text=text, token_ids=tuple(token_ids), finish_reason=FinishReason.LENGTH)
    logprob = (output.outputs[0].logprobs or ())[0]

    async def cut(*arguments: object, **options: object) -> AsyncGenerator[Delta, None]:
        rest = list(token_ids)
        for size in [*cuts, len(token_ids)]:
            part, rest = tuple(rest[:size]), rest[size:]
            delta = Delta(request_id="r", index=0, text="", token_ids=part, logprobs=(logprob,) * len(part))
            yield delta if rest else replace(delta, output=replace(output, outputs=(finished,)))
            if not rest:
                return

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_llm, "stream", cut)
        frames = stream(tgi)
    assert [frame["token"]["id"] for frame in frames] == token_ids
    assert "".join(frame["token"]["text"] for frame in frames) == text
    assert [frame["generated_text"] for frame in frames] == [None] * (len(token_ids) - 1) + [text]


def failing(output: RequestOutput, num_deltas: int, error: Exception | None) -> Any:
    """Return a stream of ``num_deltas`` tokens that then raises an error, or ends as a failed request does."""

    async def run(*arguments: object, **options: object) -> AsyncGenerator[Delta, None]:
        completion = output.outputs[0]
        for i in range(num_deltas):
            logprobs = (completion.logprobs or ())[i : i + 1]
            yield Delta(request_id="r", index=0, text="x", token_ids=completion.token_ids[i : i + 1], logprobs=logprobs)
        if error is not None:
            raise error
        failed = replace(output, error="logits are not finite", outputs=(replace(completion, finish_reason=FinishReason.ERROR),))
        yield Delta(request_id="r", index=0, text="", token_ids=(), finish_reason=FinishReason.ERROR, output=failed)

    return run


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (None, 424, "generation"),
        (CapacityError("the queue is full"), 429, "overloaded"),
        (RuntimeError("a bug"), 500, "incomplete_generation"),
    ],
)
def test_a_stream_that_fails_never_looks_complete(
    demo_llm: AsyncLLM,
    tgi: httpx.Client,
    llm: LLM,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    status: int,
    error_type: str,
) -> None:
    output, _ = expect(llm)
    monkeypatch.setattr(demo_llm, "stream", failing(output, 0, error))
    response = httpx.post(f"{tgi.base_url}/generate_stream", json={"inputs": PROMPT})
    assert (response.status_code, response.json()["error_type"]) == (status, error_type)
    monkeypatch.setattr(demo_llm, "stream", failing(output, 2, error))
    *frames, last = stream(tgi)
    assert [frame["generated_text"] for frame in frames] == [None, None]
    assert (last.keys(), last["error_type"]) == ({"error", "error_type"}, error_type)
    assert "a bug" not in last["error"]


def test_an_answer_that_fails_is_an_error(demo_llm: AsyncLLM, tgi: httpx.Client, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    output, completion = expect(llm)

    async def fail(*arguments: object, **options: object) -> RequestOutput:
        return replace(output, error="logits are not finite", outputs=(replace(completion, finish_reason=FinishReason.ERROR),))

    monkeypatch.setattr(demo_llm, "generate", fail)
    response = tgi.post("/generate", json={"inputs": PROMPT})
    assert response.status_code == 424
    assert response.json() == {"error": "logits are not finite", "error_type": "generation"}


def test_the_caches_are_those_of_the_tenant(demo_llm: AsyncLLM, tgi: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    salts: list[object] = []
    for name in ("generate", "stream"):
        method = getattr(demo_llm, name)

        def recording(*arguments: Any, method: Any = method, **options: Any) -> Any:
            salts.append(options["cache_salt"])
            return method(*arguments, **options)

        monkeypatch.setattr(demo_llm, name, recording)
    monkeypatch.setattr("hasten.serving.caller.Caller.cache_salt", lambda self, salt="": "of the tenant")
    for run in (generate, stream):
        run(tgi, max_new_tokens=1)
        assert set(salts) == {"of the tenant"}
        salts.clear()


def test_minus_infinity_is_a_number(demo_llm: AsyncLLM, tgi: httpx.Client, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    output, completion = expect(llm, max_tokens=1, logprobs=1)
    (logprob,) = completion.logprobs or ()
    logprobs = (replace(logprob, logprob=-math.inf, top=((5, -math.inf),)),)

    async def masked(*arguments: object, **options: object) -> RequestOutput:
        return replace(output, outputs=(replace(completion, logprobs=logprobs),))

    monkeypatch.setattr(demo_llm, "generate", masked)
    details = generate(tgi, details=True, top_n_tokens=1)["details"]
    assert (details["tokens"][0]["logprob"], details["top_tokens"][0][0]["logprob"]) == (-9999.0, -9999.0)


def test_a_client_that_leaves_ends_its_request(demo_llm: AsyncLLM, tgi: httpx.Client) -> None:
    def num_aborted() -> int:
        return int(asyncio.run(demo_llm.stats())["requests"]["finished"].get("abort", 0))

    async def ended() -> None:
        while (await demo_llm.stats())["requests"]["running"]:
            await asyncio.sleep(0.005)

    before = num_aborted()
    body = {"inputs": PROMPT, "parameters": {"ignore_eos_token": True, "max_new_tokens": 490}}
    with httpx.stream("POST", f"{tgi.base_url}/generate_stream", json=body) as response:
        next(response.iter_lines())
    asyncio.run(asyncio.wait_for(ended(), 20))
    assert num_aborted() == before + 1
