"""No request sees another's data: answers under load and random cancels are those of the same prompts alone, per API key."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from tests.exhaustive import repeats
from tests.serving.served_program import ServedProgram, until

from hasten import LLM, SamplingParams

OPTIONS = ("--threads", "1", "--kv-cache-memory", "64MiB", "--max-model-len", "256", "--port", "0")
IN_FLIGHT = 64
KEYS = ("key-of-alice", "key-of-bob")


@contextmanager
def serve_demo(*options: str, keys: bool = False) -> Iterator[str]:
    environment = {"HASTEN_API_KEYS": ",".join(KEYS)} if keys else {}
    with ServedProgram("-m", "hasten", "serve", "demo", *OPTIONS, *options, environment=environment) as program:
        with httpx.Client(base_url=program.url, timeout=30) as client:
            until(client, "/readyz", 200)
        yield program.url


def test_no_answer_crosses_to_another_request() -> None:
    number, draw = repeats("canaries"), random.Random(5)
    prompts = [f"secret_{i:05} = {draw.randrange(10**9)}\nprint(secret_" for i in range(number)]
    params = SamplingParams(temperature=0, max_tokens=6)
    alone = LLM("demo", max_model_len=256, kv_cache_memory="64MiB", threads=1).generate(prompts, params, use_tqdm=False)
    expected = [output.outputs[0].text for output in alone]
    with serve_demo() as url:
        answers = asyncio.run(ask_all(url, prompts, draw))
        with httpx.Client(base_url=url) as client:
            metrics = client.get("/metrics").text
    answered = [i for i, answer in enumerate(answers) if answer is not None]
    assert len(answered) > number / 2
    assert [answers[i] for i in answered] == [prompts[i] + expected[i] for i in answered]
    for name in ("num_requests_running", "num_requests_waiting"):
        assert next(line for line in metrics.splitlines() if line.startswith(f"vllm:{name}{{")).endswith(" 0.0"), name


async def ask_all(url: str, prompts: list[str], draw: random.Random) -> list[str | None]:
    """Return the answers, each with its prompt before it; None for those that were cancelled."""
    gate = asyncio.Semaphore(IN_FLIGHT)
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(prompt: str, way: str, patience: float | None) -> str | None:
            async with gate:
                try:
                    return await asyncio.wait_for(WAYS[way](client, prompt), patience)
                except TimeoutError:
                    return None

        plans = [(prompt, draw.choice(list(WAYS)), draw.choice([None, None, draw.random() * 0.5])) for prompt in prompts]
        return await asyncio.gather(*(ask(*plan) for plan in plans))


async def complete(client: httpx.AsyncClient, prompt: str) -> str:
    body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 6, "echo": True}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


async def stream(client: httpx.AsyncClient, prompt: str) -> str:
    body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 6, "stream": True}
    text = prompt
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


async def generate(client: httpx.AsyncClient, prompt: str) -> str:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 6, "return_full_text": True}}
    answer = await client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


WAYS: dict[str, Any] = {"complete": complete, "stream": stream, "generate": generate}


def test_no_cache_is_shared_between_keys() -> None:
    body = {"model": "demo", "prompt": "import os\n" * 20, "temperature": 0, "max_tokens": 2}
    with serve_demo("--result-cache", "memory:", keys=True) as url:
        clients = [httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) for key in KEYS]

        def cached(client: httpx.Client, **other: Any) -> int:
            usage = client.post("/v1/completions", json={**body, **other}).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        fresh = {"result_cache": False}  # the result cache reports its hits as such
        assert [cached(client, **fresh) for client in clients] == [0, 0]
        assert all(cached(client, **fresh) >= 16 for client in clients)
        assert cached(clients[0], cache_salt="other", **fresh) == 0
        for client in clients:
            client.post("/v1/completions", json=body)  # stored for this key
        hits = [line for line in clients[0].get("/metrics").text.splitlines() if line.startswith("hasten_result_cache_hits")]
        assert hits and float(hits[0].split()[-1]) == 0, hits
        clients[0].post("/v1/completions", json=body)
        hits = [line for line in clients[0].get("/metrics").text.splitlines() if line.startswith("hasten_result_cache_hits")]
        assert float(hits[0].split()[-1]) == 1, hits
        for client in clients:
            client.close()
