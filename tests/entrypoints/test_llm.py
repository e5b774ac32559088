"""``LLM`` as its user sees it: streams, stop conditions, refused and failed requests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten import LLM, HastenError, InvalidRequest, SamplingParams
from hasten.core.plan import RunnerOutput, StepPlan
from hasten.core.result import FinishReason
from hasten.engine.kv_cache_sizing import KvCacheWarning

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPT = "class Stack:\n    def push(self, item):"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512, kv_cache_memory="64MiB")


def held_blocks(llm: LLM) -> int:
    return sum(allocator.num_held for allocator in llm.engine.scheduler.kv.allocators)


@pytest.mark.parametrize("settings", [{}, {"n": 3, "temperature": 1.0, "seed": 4}, {"stop": ("self",)}, {"beam_width": 3, "n": 2}])
def test_a_stream_equals_generate(llm: LLM, settings: dict[str, object]) -> None:
    params = GREEDY.replace(**({"temperature": 1.0} if "beam_width" in settings else {}), **settings)
    complete = llm.generate(PROMPT, params)[0]
    deltas = list(llm.stream(PROMPT, params))
    for completion in complete.outputs:
        own = [delta for delta in deltas if delta.index == completion.index]
        assert "".join(delta.text for delta in own) == completion.text
        assert tuple(token for delta in own for token in delta.token_ids) == completion.token_ids
        assert own[-1].finish_reason == completion.finish_reason
    assert [delta.output is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].output is not None and deltas[-1].output.outputs == complete.outputs


def test_a_stop_string_ends_the_text_and_is_never_shown(llm: LLM) -> None:
    text = llm.generate(PROMPT, GREEDY.replace(ignore_eos=True))[0].outputs[0].text
    stop = text[len(text) // 2 :][:5]
    shown = ""
    for delta in llm.stream(PROMPT, GREEDY.replace(ignore_eos=True, stop=(stop,))):
        shown += delta.text
        assert stop not in shown
    assert shown == text[: text.index(stop)]
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, stop)
    included = (
        llm.generate(PROMPT, GREEDY.replace(ignore_eos=True, stop=(stop,), include_stop_str_in_output=True))[0].outputs[0].text
    )
    assert included == text[: text.index(stop) + len(stop)]


def test_stop_tokens_end_a_completion_after_min_tokens(llm: LLM) -> None:
    ids = llm.generate(PROMPT, GREEDY.replace(ignore_eos=True))[0].outputs[0].token_ids
    stopped = llm.generate(PROMPT, GREEDY.replace(ignore_eos=True, stop_token_ids=(ids[3],)))[0].outputs[0]
    assert stopped.token_ids == ids[: ids.index(ids[3]) + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, ids[3])
    longer = llm.generate(PROMPT, GREEDY.replace(ignore_eos=True, stop_token_ids=(ids[3],), min_tokens=10))[0].outputs[0]
    assert len(longer.token_ids) >= 10 and ids[3] not in longer.token_ids[:9]


def test_closing_a_stream_frees_its_blocks_and_others_go_on(llm: LLM) -> None:
    expected = llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    kept, closed = llm.stream(PROMPT, GREEDY), llm.stream("import os\n", GREEDY)
    first = [next(kept), next(closed)]
    assert held_blocks(llm) > 0 and all(delta.token_ids for delta in first)
    assert isinstance(closed, Iterator)
    closed.close()  # type: ignore[attr-defined]
    rest = list(kept)
    assert first[0].token_ids + tuple(token for delta in rest for token in delta.token_ids) == expected
    assert held_blocks(llm) == 0


def test_a_prefix_of_16_requests_is_computed_once(tiny: Callable[[str], Path]) -> None:
    """All requests arrive at once. At most shared + 16 × (own + block size) prompt tokens are computed."""
    llm = LLM(str(tiny("llama-gqa")), block_size=8, max_num_batched_tokens=64, kv_cache_memory="8MiB", max_model_len=256)
    shared = [7 + i % 50 for i in range(100)]
    prompts = [{"prompt_token_ids": [*shared, *[3 + (i * 5 + j) % 90 for j in range(12)]]} for i in range(16)]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), use_tqdm=False)
    computed = sum(output.metrics.num_prompt_tokens - output.metrics.num_cached_tokens for output in outputs)
    assert computed <= 100 + 16 * (12 + 8)
    assert llm.engine.stats.num_computed_tokens == computed + 16 * 3  # the metrics count every computed token


def test_tenants_share_no_cached_blocks(llm: LLM) -> None:
    prompt = "import os\n" * 20
    llm.reset_prefix_cache()
    llm.generate(prompt, GREEDY, cache_salt="red")
    same_tenant = llm.generate(prompt, GREEDY, cache_salt="red")[0].metrics.num_cached_tokens
    other_tenant = llm.generate(prompt, GREEDY, cache_salt="blue")[0].metrics.num_cached_tokens
    assert same_tenant > 0 and other_tenant == 0


def test_batching_modes_differ_in_time_only(tiny: Callable[[str], Path]) -> None:
    prompts = [{"prompt_token_ids": [3 + i, 4, 5, 6 + i]} for i in range(7)]
    params = [SamplingParams(temperature=0, max_tokens=3 + 2 * i, ignore_eos=True) for i in range(7)]
    steps, token_ids = {}, {}
    for batching in ("continuous", "dynamic", "static"):
        llm = LLM(str(tiny("qwen3-gqa")), batching=batching, max_num_seqs=3, max_batch_delay=0.0, kv_cache_memory="8MiB")
        token_ids[batching] = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
        steps[batching] = llm.engine.stats.num_steps
    assert token_ids["continuous"] == token_ids["dynamic"] == token_ids["static"]
    # Batches of 3 run until the longest request ends: 7 + 13 + 15 steps. Continuous batching starts the next request at once.
    assert steps["static"] == steps["dynamic"] == 7 + 13 + 15 > steps["continuous"]


def test_kv_cache_sizing_warns_with_both_numbers_and_refuses_the_impossible(tiny: Callable[[str], Path]) -> None:
    with pytest.warns(KvCacheWarning, match="reduced from 256 to 80"):
        small = LLM(str(tiny("llama-gqa")), dtype="float32", block_size=16, kv_cache_memory=80 * 3 * 2 * 2 * 16 * 4)
    with pytest.raises(InvalidRequest, match=r"got 90 tokens; allowed: up to 79"):
        small.generate({"prompt_token_ids": [5] * 90})
    with pytest.raises(InvalidRequest, match=r"got 20 prompt \+ 70 new tokens = 90; allowed: up to 80"):
        small.generate({"prompt_token_ids": [5] * 20}, SamplingParams(max_tokens=70))
    with pytest.raises(InvalidRequest, match=r"does not fit the KV pool.*allowed: up to 5 blocks"):
        small.generate({"prompt_token_ids": [5] * 20}, SamplingParams(max_tokens=50, n=4))
    with pytest.raises(HastenError, match="not even one KV block fits"):
        LLM(str(tiny("llama-gqa")), kv_cache_memory=100)
    assert len(small.generate({"prompt_token_ids": [5] * 20}, SamplingParams(temperature=0, max_tokens=60))) == 1


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("", {}, "prompt is empty|leaves no room|at least one"),
        ({"prompt_token_ids": []}, {}, "the prompt is empty"),
        (
            {"prompt_token_ids": [1, 8192, -1]},
            {},
            "2 token ids of the prompt are outside the vocabulary: got -1, 8192; allowed: 0 to 8191",
        ),
        ({"prompt_tokens": [1]}, {}, "this is not a prompt"),
        ({"prompt_token_ids": "abc"}, {}, "not whole numbers"),
        ("x" * 9000, {}, "leaves no room for an answer"),
        ("x", {"allowed_token_ids": (1, 9000)}, "9000"),
        ("x", {"logit_bias": {8192: 1.0}}, "8192"),
        ("x", {"stop": ("a",), "beam_width": 2, "temperature": 1.0}, "stop strings do not end beams"),
        ("x", {"max_tokens": 600}, "do not fit the context"),
    ],
)
def test_invalid_requests_are_refused_in_one_line_and_others_go_on(
    llm: LLM, prompt: object, settings: dict[str, object], message: str
) -> None:
    if prompt == "":  # the tokenizer adds a first token, so an empty text is a prompt
        assert llm.generate("", GREEDY.replace(max_tokens=1))[0].outputs[0].token_ids
        return
    running = llm.stream(PROMPT, GREEDY)
    first = next(running)
    with pytest.raises(InvalidRequest, match=message) as error:
        llm.generate(prompt, GREEDY.replace(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    tokens = first.token_ids + tuple(token for delta in running for token in delta.token_ids)
    assert tokens == llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids


def test_settings_out_of_range_are_listed_together() -> None:
    with pytest.raises(InvalidRequest, match=r"3 sampling settings are out of range: temperature=-1 .*top_p=2 .*n=0 "):
        SamplingParams(temperature=-1, top_p=2, n=0)
    with pytest.raises(InvalidRequest, match="Did you mean 'temperature'"):
        SamplingParams.from_dict({"temprature": 1})


def test_nan_logits_end_one_request_and_are_never_cached(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), dtype="float32", block_size=4, kv_cache_memory="8MiB", speculative_method="off")
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompts = [{"prompt_token_ids": [10 + i] * 9} for i in range(4)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    llm.reset_prefix_cache()
    runner, run = llm.engine._runner, llm.engine._runner.run

    def with_nan(plan: StepPlan) -> RunnerOutput:
        logits = run(plan).logits.clone()
        for row, sequence_id in enumerate(plan.sampled_sequence_ids):
            sequence = llm.engine.scheduler.sequence(sequence_id)
            if sequence.token_ids[0] == 12 and sequence.num_output_tokens == 3:
                logits[row, 5] = torch.nan
        return RunnerOutput(logits)

    runner.run = with_nan  # type: ignore[method-assign]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.error is None for output in outputs] == [True, True, False, True]
    assert outputs[2].outputs[0].finish_reason is FinishReason.ERROR and outputs[2].outputs[0].token_ids == expected[2][:3]
    assert [o.outputs[0].token_ids for i, o in enumerate(outputs) if i != 2] == [e for i, e in enumerate(expected) if i != 2]
    runner.run = run  # type: ignore[method-assign]
    again = llm.generate(prompts, params, use_tqdm=False)
    assert [output.metrics.num_cached_tokens for output in again] == [8, 8, 0, 8]
    assert [output.outputs[0].token_ids for output in again] == expected


@pytest.mark.parametrize("beams", [{}, {"beam_width": 2, "temperature": 1.0}])
def test_settings_that_forbid_every_token_are_an_error_and_keep_the_cache(
    tiny: Callable[[str], Path], beams: dict[str, object]
) -> None:
    llm = LLM(str(tiny("llama-gqa")), dtype="float32", block_size=4, kv_cache_memory="8MiB")
    prompt = {"prompt_token_ids": [7] * 9}
    params = SamplingParams(temperature=0, max_tokens=4)
    llm.generate(prompt, params)
    no_token = params.replace(min_tokens=2, allowed_token_ids=(2,), **beams)  # 2 is the end of a sequence
    output = llm.generate(prompt, no_token)[0]
    assert output.error is not None and "leave no token to choose" in output.error
    assert output.outputs[0].finish_reason is FinishReason.ERROR
    assert llm.generate(prompt, params)[0].metrics.num_cached_tokens == 8


def test_a_failed_step_ends_its_own_requests_only(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(str(tiny("llama-gqa")), dtype="float32", block_size=4, kv_cache_memory="8MiB", max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompts = [{"prompt_token_ids": [10 + i] * 5} for i in range(3)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    runner, run, calls = llm.engine._runner, llm.engine._runner.run, []

    def fails_once(plan: StepPlan) -> RunnerOutput:
        calls.append(plan)
        if len(calls) == 3:
            raise MemoryError("no memory")
        return run(plan)

    runner.run = fails_once  # type: ignore[method-assign]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.error is None for output in outputs] == [False, False, True]  # two ran, the third waited
    assert "MemoryError: no memory" in str(outputs[0].error)
    assert outputs[2].outputs[0].token_ids == expected[2]
    assert held_blocks(llm) == 0


def test_a_checkpoint_without_a_tokenizer_takes_token_ids(tiny: Callable[[str], Path]) -> None:
    llm = LLM(str(tiny("llama-gqa")), kv_cache_memory="8MiB")
    output = llm.generate({"prompt_token_ids": [5, 6]}, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))[0]
    assert len(output.outputs[0].token_ids) == 3 and output.outputs[0].text == ""
    for call in (lambda: llm.generate("text"), lambda: llm.chat([{"role": "user", "content": "hi"}])):
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            call()
    with pytest.raises(InvalidRequest, match="need a tokenizer"):
        llm.generate({"prompt_token_ids": [5]}, SamplingParams(stop=("x",)))


def test_chat_renders_the_checkpoints_template(llm: LLM) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 你好"}]
    tokenizer = AutoTokenizer.from_pretrained(llm.describe()["folder"])
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    output = llm.chat(messages, GREEDY.replace(max_tokens=2))[0]
    assert list(output.prompt_token_ids) == list(expected)
    with pytest.raises(InvalidRequest, match="these are no messages"):
        llm.chat([])


def test_chat_refuses_what_would_not_reach_the_model_as_it_was_meant(llm: LLM) -> None:
    params, hi = GREEDY.replace(max_tokens=2), [{"role": "user", "content": "Hi\n你好"}]
    expected = llm.chat(hi, params)[0].prompt_token_ids
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "你好"}]
    assert llm.chat([{"role": "user", "content": parts}], params)[0].prompt_token_ids == expected
    assert [output.prompt_token_ids for output in llm.chat([hi, hi], params)] == [expected] * 2
    closed = llm.chat(hi, params, chat_template_kwargs={"add_generation_prompt": False})[0].prompt_token_ids
    assert closed == llm.chat(hi, params, add_generation_prompt=False)[0].prompt_token_ids != expected
    assert expected[: len(closed)] == closed
    bad: Any
    for bad in (None, 5, {"role": "user"}, "Hi", [5], [None], [hi, 5], [[]], [{"role": "user", "content": "\ud800"}]):
        with pytest.raises(InvalidRequest):
            llm.chat(bad, params)
        with pytest.raises(InvalidRequest):
            llm.stream_chat(bad, params)
    for name in ("chat_template", "enable_thinkng", "bos_token", "template"):
        with pytest.raises(InvalidRequest, match=f"no such variable.*{name!r}"):
            llm.chat(hi, params, **{name: "x"})
    with pytest.warns(UserWarning, match="special token <.im_end.> in it"):
        llm.chat(hi, params.replace(stop=("<|im_end|>\n",)))


def test_no_warning_where_everything_fits(tiny: Callable[[str], Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LLM(str(tiny("llama-gqa"))).describe()["max_model_len"] == 256
