"""huggingface_hub's ``InferenceClient.text_generation`` against a real server: every combination of details and stream."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import InferenceClient, TextGenerationOutput, TextGenerationStreamOutput
from huggingface_hub.errors import OverloadedError, ValidationError
from tests.serving.live_server import live_server

from hasten import LLM, SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState
from hasten.serving.tgi.surface import tgi_surface

PROMPT = "def f("
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "typical_p": 0.95, "seed": 7}
PENALISED: dict[str, Any] = {"repetition_penalty": 1.3, "frequency_penalty": 0.2}
COMBINATIONS = list(itertools.product([False, True], [False, True], [None, False, True], [None, 3]))


@pytest.fixture(scope="module")
def state() -> Iterator[ServerState]:
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512)
    yield ServerState(ServerOptions(), SingleModel("demo", llm))
    asyncio.run(llm.close())


@pytest.fixture(scope="module")
def url(state: ServerState) -> Iterator[str]:
    with live_server(create_app(state, [tgi_surface()])) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> InferenceClient:
    return InferenceClient(base_url=url)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512) as llm:
        yield llm


@pytest.mark.parametrize(("details", "streams", "full_text", "top_n"), COMBINATIONS)
@pytest.mark.parametrize("settings", [{}, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
def test_every_combination_gives_the_text_of_the_model(
    client: InferenceClient,
    llm: LLM,
    details: bool,
    streams: bool,
    full_text: bool | None,
    top_n: int | None,
    settings: dict[str, Any],
) -> None:
    params = {name: value for name, value in settings.items() if name != "do_sample"}
    if settings is not SAMPLED:
        params["temperature"] = 0
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=9, logprobs=top_n or 0, **params), use_tqdm=False)
    completion = expected.outputs[0]
    shown = PROMPT + completion.text if full_text else completion.text
    options = {"max_new_tokens": 9, "return_full_text": full_text, "top_n_tokens": top_n, **settings}
    found: Any = client.text_generation(PROMPT, details=details, stream=streams, **options)
    if not streams and not details:
        assert found == shown
    elif not streams:
        assert isinstance(found, TextGenerationOutput)
        assert found.generated_text == shown
        assert [token.id for token in found.details.tokens] == list(completion.token_ids)
        assert [token.logprob for token in found.details.tokens] == [each.logprob for each in completion.logprobs or ()]
        assert "".join(token.text for token in found.details.tokens) == completion.text
        assert (found.details.finish_reason, found.details.generated_tokens) == ("length", 9)
        assert found.details.seed == settings.get("seed")
        assert [len(row) for row in found.details.top_tokens or []] == ([top_n] * 9 if top_n else [])
    elif not details:
        assert "".join(found) == completion.text
    else:
        frames = list(found)
        assert all(isinstance(frame, TextGenerationStreamOutput) for frame in frames)
        assert [frame.token.id for frame in frames] == list(completion.token_ids)
        assert "".join(frame.token.text for frame in frames) == completion.text
        assert [frame.generated_text for frame in frames] == [None] * 8 + [shown]
        last = frames[-1].details
        assert (last.finish_reason, last.generated_tokens, last.input_length) == ("length", 9, len(expected.prompt_token_ids))


def test_the_tokens_of_the_prompt(client: InferenceClient, llm: LLM) -> None:
    found = client.text_generation(PROMPT, max_new_tokens=2, details=True, decoder_input_details=True)
    assert [token.id for token in found.details.prefill] == llm.tokenizer.encode(PROMPT)
    assert found.details.prefill[0].logprob is None


def test_a_stop_string_ends_the_text(client: InferenceClient) -> None:
    found = client.text_generation(PROMPT, max_new_tokens=100, stop=["Retu"], details=True)
    assert found.generated_text.endswith("Retu")
    assert found.generated_text.count("Retu") == 1
    assert found.details.finish_reason == "stop_sequence"


def test_a_grammar_gives_json(client: InferenceClient) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    text = client.text_generation(PROMPT, max_new_tokens=80, grammar={"type": "json", "value": schema})
    assert json.loads(text)["n"] in (1, 2)
    assert client.text_generation(PROMPT, grammar={"type": "regex", "value": "[xy]{4}"}).strip("xy") == ""


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"watermark": True}, {"best_of": 2}, {"adapter_id": "lora"}, {"temperature": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 600}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_not_supported_is_the_clients_validation_error(
    client: InferenceClient, streams: bool, options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        list(client.text_generation(PROMPT, stream=streams, **options))


def test_a_full_queue_is_the_clients_overloaded_error(client: InferenceClient, state: ServerState) -> None:
    with state.admission.place("demo", 256, 256), pytest.raises(OverloadedError, match="queue"):
        client.text_generation(PROMPT)


def test_the_url_may_stand_for_the_model(url: str, client: InferenceClient) -> None:
    by_model = InferenceClient(model=url, provider="hf-inference")
    assert by_model.get_endpoint_info()["model_id"] == "demo"
    assert by_model.text_generation(PROMPT) == client.text_generation(PROMPT)
