"""The engine's limits on requests: refused at once in ``LLM`` and ``AsyncLLM`` alike, by name, and raised by options."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from hasten import LLM, AsyncLLM, SamplingParams
from hasten.core.errors import InvalidRequest, PromptTooLong
from hasten.engine import request_state
from hasten.entrypoints.input_processor import MAX_SALT
from hasten.text.stop_strings import StopStrings

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "kv_cache_memory": "16MiB",
    "threads": 1,
    "speculative_method": "off",
    "max_stop_strings": 3,
    "max_stop_length": 10,
    "max_bad_words": 2,
    "max_bad_word_length": 9,
    "max_logit_bias": 5,
}
GREEDY = SamplingParams(temperature=0, max_tokens=2)
SECONDS = 1.0  # of CPU, which a busy machine does not lengthen; tokenising 10 MB takes twenty times as long

# Settings at the limit, settings beyond it, and the option that raises it.
LIMITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"stop": ("a",) * 3}, {"stop": ("a",) * 4}, "max_stop_strings"),
    ({"stop": ("a" * 10,)}, {"stop": ("a" * 11,)}, "max_stop_length"),
    ({"bad_words": ("a",) * 2}, {"bad_words": ("a",) * 3}, "max_bad_words"),
    ({"bad_words": ("a" * 9,)}, {"bad_words": ("a" * 10,)}, "max_bad_word_length"),
    ({"bad_words_ids": ((1,),) * 32}, {"bad_words_ids": ((1,),) * 33}, "max_bad_words"),
    ({"bad_words_ids": ((1,) * 9,)}, {"bad_words_ids": ((1,) * 10,)}, "max_bad_word_length"),
    ({"logit_bias": dict.fromkeys(range(5), 1)}, {"logit_bias": dict.fromkeys(range(6), 1)}, "max_logit_bias"),
]
TOO_MUCH: list[dict[str, Any]] = [
    *({"stop": "x" * 10**6, "n": 64, "temperature": 1.0}, {"stop": ["x"] * 10**5}, {"bad_words": ["x"] * 10**5}),
    *({"bad_words": "x" * 10**6}, {"bad_words_ids": [[1]] * 10**5}, {"bad_words_ids": [list(range(10**5))]}),
    *({"logit_bias": dict.fromkeys(range(10**5), 1.0)}, {"allowed_token_ids": list(range(10**6))}),
    *({"stop_token_ids": list(range(10**6))},),
]
LONG = "def f():\n" * (10 * 2**20 // 9)
LONG_IDS = {"prompt_token_ids": [5] * 10**7}
CHAT = [{"role": "user", "content": LONG}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", **OPTIONS)


def name_of(case: Any) -> str:
    return case if isinstance(case, str) else next(iter(case))


def kind(value: Any) -> str:
    return type(value).__name__


def refused(call: Callable[[], Any]) -> InvalidRequest:
    """Return the error of a call that is refused at once."""
    started = time.thread_time()
    with pytest.raises(InvalidRequest) as error:
        call()
    assert time.thread_time() - started < SECONDS
    return error.value


@pytest.mark.parametrize(("at_limit", "beyond", "option"), LIMITS, ids=name_of)
def test_a_setting_beyond_its_limit_is_refused_with_the_option_that_raises_it(
    llm: LLM, at_limit: dict[str, Any], beyond: dict[str, Any], option: str
) -> None:
    assert llm.generate("x", GREEDY.replace(**at_limit), use_tqdm=False)[0].error is None
    message = str(refused(lambda: llm.generate("x", GREEDY.replace(**beyond))))
    assert next(iter(beyond)) in message
    assert f"raise {option} of the engine" in message


def test_options_raise_the_limits() -> None:
    raised = {name: 100 for _, _, name in LIMITS}
    llm = LLM("demo", **{**OPTIONS, **raised})
    for _, beyond, _ in LIMITS:
        assert llm.generate("x", GREEDY.replace(**beyond), use_tqdm=False)[0].error is None


def test_every_limit_that_is_exceeded_is_named(llm: LLM) -> None:
    message = str(refused(lambda: llm.generate("x", GREEDY.replace(stop=("a" * 11,) * 4, logit_bias=dict.fromkeys(range(6), 1)))))
    assert all(name in message for name in ("max_stop_strings", "max_stop_length", "max_logit_bias", "11 characters", "6 items"))


@pytest.mark.parametrize("settings", TOO_MUCH, ids=name_of)
def test_a_million_items_cost_nothing(llm: LLM, settings: dict[str, Any]) -> None:
    refused(lambda: llm.generate("x", GREEDY.replace(**settings)))


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(llm: LLM) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: llm.generate(LONG),
        lambda: llm.stream(LONG),
        lambda: llm.chat(CHAT),
        lambda: llm.score(LONG, ["x"]),
        lambda: llm.score("x", [LONG]),
        lambda: llm.choose("x", ["y", LONG]),
    ]
    for call in calls:
        error = refused(call)
        assert isinstance(error, PromptTooLong)
        assert "characters; allowed: up to" in str(error)


def test_a_list_of_token_ids_is_measured_before_it_is_read(llm: LLM) -> None:
    ids = {"token_ids": LONG_IDS["prompt_token_ids"]}
    calls: list[Callable[[], Any]] = [
        lambda: llm.generate(LONG_IDS),
        lambda: llm.score("x", [ids]),
        lambda: llm.generate({"prompt_token_ids": range(10**12)}),
    ]
    for call in calls:
        error = refused(call)
        assert isinstance(error, PromptTooLong)
        assert "0 tokens; allowed: up to 25" in str(error)


def test_the_asynchronous_engine_refuses_the_same() -> None:
    async def session() -> None:
        async with AsyncLLM("demo", **OPTIONS) as llm:
            for settings in [*(beyond for _, beyond, _ in LIMITS), *TOO_MUCH]:
                with pytest.raises(InvalidRequest):
                    await llm.generate("x", GREEDY.replace(**settings))
            for prompt in (LONG, LONG_IDS):
                with pytest.raises(PromptTooLong):
                    await llm.generate(prompt)
            with pytest.raises(PromptTooLong):
                async for _ in llm.stream_chat(CHAT):
                    pass
            assert (await llm.generate("x", GREEDY)).error is None

    started = time.process_time()
    asyncio.run(session())
    assert time.process_time() - started < 20 * SECONDS


def test_text_at_the_bound_is_tokenised(llm: LLM) -> None:
    """The bound is that of the longest token, so a prompt made of it fits."""
    vocabulary = llm.tokenizer._tokenizer.get_vocab(with_added_tokens=False)
    longest = max((token for token in vocabulary if token.isascii()), key=len)
    count = 200
    text = llm.tokenizer.decode([vocabulary[longest]] * count, skip_special_tokens=False)
    num_tokens = len(llm.tokenizer.encode(text))
    assert len(text) <= llm.tokenizer.max_chars_per_token * num_tokens
    if num_tokens < 254:
        assert llm.generate(text, GREEDY, use_tqdm=False)[0].error is None


@pytest.mark.parametrize("salt", [b"x", None, 5, ["x"], "\ud800", "x" * (MAX_SALT + 1)], ids=kind)
def test_a_cache_salt_is_a_short_text(llm: LLM, salt: Any) -> None:
    assert "cache_salt" in str(refused(lambda: llm.generate("x", GREEDY, cache_salt=salt)))
    assert "cache_salt" in str(refused(lambda: llm.score("x", ["y"], cache_salt=salt)))


@pytest.mark.parametrize("params", [{}, {"temperature": 0}, 0, "greedy", False, object(), b""], ids=kind)
def test_settings_of_another_class_are_refused(llm: LLM, params: Any) -> None:
    assert "sampling_params" in str(refused(lambda: llm.stream("x", params)))
    assert "sampling_params" in str(refused(lambda: llm.generate(["x"], [params])))
    assert "sampling_params" in str(refused(lambda: llm.score("x", ["y"], params)))


JUNK = [None, 5, 1.5, b"x", [], [5], {}, {"prompt": "x"}, {5: 6}, object(), {"prompt_token_ids": None}, {"prompt_token_ids": b"ab"}]
JUNK += ["\ud800", *({"prompt_token_ids": [item]} for item in ("x", True, 10**5000, 1.0, -1, None))]


@pytest.mark.parametrize("junk", JUNK, ids=kind)
def test_what_is_no_prompt_and_no_continuation_is_refused(llm: LLM, junk: Any) -> None:
    refused(lambda: llm.stream(junk, GREEDY))
    refused(lambda: llm.score(junk, ["x"]))
    refused(lambda: llm.score("x", [junk]))
    if not isinstance(junk, list):
        refused(lambda: llm.score("x", junk))
        refused(lambda: llm.choose("x", ["y"], normalize=junk))


def test_the_completions_of_a_request_share_one_automaton(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def count(stop: tuple[str, ...], include: bool) -> StopStrings:
        built.append(stop)
        return StopStrings(stop, include)

    monkeypatch.setattr(request_state, "StopStrings", count)
    params = SamplingParams(n=8, seed=3, max_tokens=40, ignore_eos=True, stop=("e", "\n\n"))
    together = llm.generate("def ", params, use_tqdm=False)[0].outputs
    assert built == [("e", "\n\n")]
    free = llm.generate("def ", params.replace(stop=()), use_tqdm=False)[0].outputs
    for stopped, running in zip(together, free, strict=True):
        end = min((running.text.index(stop) for stop in params.stop if stop in running.text), default=len(running.text))
        assert stopped.text == running.text[:end]
    assert len({completion.text for completion in together}) > 1
