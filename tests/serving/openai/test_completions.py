"""Completions over HTTP against those of ``LLM`` in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.serving.openai.answers import joined_texts, post, refusal, stream

from hasten import LLM, SamplingParams

PROMPT = "def add(a, b):\n    return"
OTHER = "import os\n"
SAMPLED = {"temperature": 1.2, "top_p": 1.0, "seed": 7, "max_tokens": 12}
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", threads=1, kv_cache_memory="16MiB", max_model_len=512) as opened:
        yield opened


def texts_of(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY, SAMPLED | {"n": 3}, GREEDY | {"use_beam_search": True, "n": 2}])
def test_texts_equal_those_in_process_streamed_or_not(client: httpx.Client, llm: LLM, settings: dict[str, Any]) -> None:
    own = {name: value for name, value in settings.items() if name != "use_beam_search"}
    if "use_beam_search" in settings:
        own |= {"beam_width": settings["n"], "top_p": 1.0}
    (expected,) = llm.generate(PROMPT, llm.default_sampling_params().replace(**own), use_tqdm=False)
    answer = post(client, "completions", prompt=PROMPT, **settings)
    assert texts_of(answer) == [each.text for each in expected.outputs]
    assert answer["object"] == "text_completion" and answer["model"] == "demo"
    chunks = stream(client, "completions", prompt=PROMPT, **settings)
    assert list(dict(sorted(joined_texts(chunks).items())).values()) == texts_of(answer)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(reasons) == sorted(choice["finish_reason"] for choice in answer["choices"])
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)


def test_the_four_forms_of_prompts(client: httpx.Client, llm: LLM) -> None:
    ids = [llm.tokenizer.encode(text) for text in (PROMPT, OTHER)]
    one, other = (texts_of(post(client, "completions", prompt=each, **GREEDY))[0] for each in (PROMPT, OTHER))
    assert one != other
    for prompt in ([PROMPT, OTHER], ids):
        answer = post(client, "completions", prompt=prompt, **GREEDY)
        assert texts_of(answer) == [one, other]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids)) and answer["usage"]["completion_tokens"] == 12
        streamed = joined_texts(stream(client, "completions", prompt=prompt, **GREEDY))
        assert [streamed[0], streamed[1]] == [one, other]
    assert texts_of(post(client, "completions", prompt=ids[0], **GREEDY)) == [one]
    several = texts_of(post(client, "completions", prompt=[PROMPT, OTHER], n=2, **SAMPLED))
    assert len(several) == 4
    assert several[:2] == texts_of(post(client, "completions", prompt=PROMPT, n=2, **SAMPLED))
    assert joined_texts(stream(client, "completions", prompt=[PROMPT, OTHER], n=2, **SAMPLED)) == dict(enumerate(several))


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], [[1], "a"], [["a"]], 5, {"a": 1}, [1.5], [True], [[1], []], [-1], [10**9]])
def test_other_prompts_are_refused(client: httpx.Client, prompt: Any) -> None:
    assert refusal(client, "completions", prompt=prompt, **GREEDY)["param"] == "prompt"


def test_special_tokens_of_prompts_can_be_left_out(client: httpx.Client, llm: LLM) -> None:
    found = [
        post(client, "completions", prompt=PROMPT, add_special_tokens=each, return_token_ids=True, **GREEDY)
        for each in (True, False)
    ]
    with_them, without = (answer["choices"][0]["prompt_token_ids"] for answer in found)
    assert with_them == llm.tokenizer.encode(PROMPT)
    assert without == llm.tokenizer.encode(PROMPT, add_special_tokens=False) != with_them


def test_logprobs_equal_those_in_process(client: httpx.Client, llm: LLM) -> None:
    (expected,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6, logprobs=3), use_tqdm=False)
    choice = post(client, "completions", prompt=PROMPT, logprobs=3, **GREEDY)["choices"][0]
    found, tokens = choice["logprobs"], expected.outputs[0].logprobs
    assert tokens is not None
    assert found["token_logprobs"] == [token.logprob for token in tokens]
    assert "".join(found["tokens"]) == choice["text"]
    assert [
        choice["text"][offset:].startswith(token) for offset, token in zip(found["text_offset"], found["tokens"], strict=True)
    ] == [True] * 6
    for top, token in zip(found["top_logprobs"], tokens, strict=True):
        assert list(top.values())[:3] == [logprob for _, logprob in token.top] and len(top) == 3
    chunks = stream(client, "completions", prompt=PROMPT, logprobs=3, **GREEDY)
    streamed = [each["logprobs"] for chunk in chunks for each in chunk["choices"]]
    assert {name: [item for part in streamed for item in part[name]] for name in found} == found


def test_scores_as_lm_eval_asks_for_them(client: httpx.Client, llm: LLM) -> None:
    """Token ids, echo, logprobs 1 and one token to generate, whose log-probability is left out by ``[start:-1]``."""
    ids = [llm.tokenizer.encode(PROMPT), llm.tokenizer.encode(OTHER + PROMPT)]
    starts = [4, 3]
    for max_tokens, end in ((1, -1), (0, None)):
        answer = post(client, "completions", prompt=ids, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1)
        for choice, tokens, start in zip(answer["choices"], ids, starts, strict=True):
            (score,) = llm.score({"prompt_token_ids": tokens[:start]}, [{"token_ids": tokens[start:]}])
            found = choice["logprobs"]
            assert found["token_logprobs"][start:end] == pytest.approx(list(score.logprobs), abs=2e-3)
            assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
            assert choice["text"].startswith(llm.tokenizer.decode(tokens, skip_special_tokens=False))
            for logprob, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
                assert len(top) <= 2 and logprob in top.values() and max(top.values()) >= logprob
        assert answer["usage"]["completion_tokens"] == 2 * max_tokens


def test_greedy_tokens_are_the_top_ones_of_their_echo(client: httpx.Client, llm: LLM) -> None:
    """As lm-eval tells whether a continuation is greedy: by the equality of two numbers."""
    ids = llm.tokenizer.encode(PROMPT)
    greedy = post(client, "completions", prompt=ids, return_token_ids=True, **GREEDY)["choices"][0]["token_ids"]
    echoed = post(client, "completions", prompt=ids + greedy, echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
    tops = zip(echoed["token_logprobs"][len(ids) :], echoed["top_logprobs"][len(ids) :], strict=True)
    assert all(logprob == max(top.values()) for logprob, top in tops)
    other = (greedy[0] + 1) % 8192
    echoed = post(client, "completions", prompt=[*ids, other], echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
    assert echoed["token_logprobs"][-1] < max(echoed["top_logprobs"][-1].values())


def test_echo_comes_with_the_first_chunk(client: httpx.Client) -> None:
    whole = post(client, "completions", prompt=[PROMPT, OTHER], echo=True, logprobs=2, **GREEDY)
    assert [text.startswith(prompt) for text, prompt in zip(texts_of(whole), (PROMPT, OTHER), strict=True)] == [True, True]
    chunks = stream(client, "completions", prompt=[PROMPT, OTHER], echo=True, logprobs=2, **GREEDY)
    assert joined_texts(chunks) == dict(enumerate(texts_of(whole)))
    for index in (0, 1):
        parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        expected = whole["choices"][index]["logprobs"]
        assert {name: [item for part in parts for item in part[name]] for name in expected} == expected
    only = stream(client, "completions", prompt=PROMPT, echo=True, max_tokens=0)
    assert joined_texts(only) == {0: PROMPT} and only[-1]["choices"][0]["finish_reason"] == "length"


def test_prompt_logprobs_have_vllms_form(client: httpx.Client, llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    found = post(client, "completions", prompt=PROMPT, prompt_logprobs=2, **GREEDY)["choices"][0]["prompt_logprobs"]
    echoed = post(client, "completions", prompt=PROMPT, echo=True, logprobs=2, **GREEDY)["choices"][0]["logprobs"]
    assert found[0] is None and len(found) == len(ids)
    for place, token_id in enumerate(ids[1:], start=1):
        entry = found[place][str(token_id)]
        assert entry["logprob"] == echoed["token_logprobs"][place] and entry["decoded_token"] == echoed["tokens"][place]
        best = max(found[place].values(), key=lambda each: each["logprob"])
        assert best["rank"] == 1 and len(found[place]) in (2, 3)
        assert all(each["rank"] >= 1 for each in found[place].values())
    assert refusal(client, "completions", prompt=PROMPT, prompt_logprobs=2, stream=True)["param"] == "prompt_logprobs"


def test_usage_of_streams(client: httpx.Client) -> None:
    whole = post(client, "completions", prompt=[PROMPT, OTHER], **GREEDY)["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = stream(client, "completions", prompt=[PROMPT, OTHER], stream_options=options, **GREEDY)
    assert last["choices"] == [] and all(chunk["choices"] for chunk in chunks)
    assert {**last["usage"], "prompt_tokens_details": None} == {**whole, "prompt_tokens_details": None}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert (
        counts == sorted(counts)
        and counts[-1] == 12
        and {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {whole["prompt_tokens"]}
    )
    assert chunks[-1]["usage"] == last["usage"]
    assert refusal(client, "completions", prompt=PROMPT, stream_options=options)["param"] == "stream_options"


def test_cached_tokens_are_always_reported(client: httpx.Client) -> None:
    prompt = "class Cache:\n" + "    # a prefix that is long enough for a block\n" * 6
    first, second = (post(client, "completions", prompt=prompt, cache_salt="s", **GREEDY)["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"]["cached_tokens"] >= 32
    options = {"continuous_usage_stats": True}
    chunks = stream(client, "completions", prompt=prompt, cache_salt="s", stream_options=options, **GREEDY)
    assert all(chunk["usage"]["prompt_tokens_details"] == second["prompt_tokens_details"] for chunk in chunks)
    other = post(client, "completions", prompt=prompt, cache_salt="t", **GREEDY)["usage"]
    assert other["prompt_tokens_details"] == {"cached_tokens": 0}


def test_a_prompt_and_its_output_never_exceed_the_context(client: httpx.Client) -> None:
    ids = [100] * 500
    assert post(client, "completions", prompt=ids, max_tokens=12, ignore_eos=True)["usage"]["total_tokens"] == 512
    for length, max_tokens in ((500, 13), (512, 1), (600, 1)):
        error = refusal(client, "completions", prompt=[100] * length, max_tokens=max_tokens)
        assert error["code"] == "context_length_exceeded" and str(length) in error["message"]
        assert error["param"] == ("max_tokens" if length == 500 else "prompt")
    assert post(client, "completions", prompt=ids, ignore_eos=True)["usage"]["completion_tokens"] == 12  # as many as have room


def test_stops(client: httpx.Client) -> None:
    text = texts_of(post(client, "completions", prompt=PROMPT, temperature=0, max_tokens=40))[0]
    word = text.split()[2]
    before = text[: text.index(word)]
    for stop in (word, [word, "zebra"]):
        choice = post(client, "completions", prompt=PROMPT, temperature=0, max_tokens=40, stop=stop)["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (before, "stop", word)
    kept = post(client, "completions", prompt=PROMPT, temperature=0, max_tokens=40, stop=word, include_stop_str_in_output=True)
    assert texts_of(kept) == [before + word]
    assert joined_texts(stream(client, "completions", prompt=PROMPT, temperature=0, max_tokens=40, stop=word)) == {0: before}


def test_token_ids_and_tokens_as_ids(client: httpx.Client, llm: LLM) -> None:
    (expected,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
    choice = post(
        client, "completions", prompt=PROMPT, return_token_ids=True, logprobs=0, return_tokens_as_token_ids=True, **GREEDY
    )["choices"][0]
    assert choice["token_ids"] == list(expected.outputs[0].token_ids)
    assert choice["prompt_token_ids"] == list(expected.prompt_token_ids)
    assert choice["logprobs"]["tokens"] == [f"token_id:{each}" for each in choice["token_ids"]]
    chunks = stream(client, "completions", prompt=PROMPT, return_token_ids=True, **GREEDY)
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert [each for part in parts for each in part["token_ids"]] == choice["token_ids"]
    assert [part.get("prompt_token_ids") for part in parts] == [choice["prompt_token_ids"]] + [None] * (len(parts) - 1)


def test_too_many_prompts(client: httpx.Client) -> None:
    assert refusal(client, "completions", prompt=[PROMPT] * 5, **GREEDY)["param"] == "prompt"
    assert len(post(client, "completions", prompt=[PROMPT] * 4, max_tokens=1)["choices"]) == 4
