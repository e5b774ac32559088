"""Structured output on the shipped model: outputs validate, and no drafter, batch or preemption changes one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tests.engine.constant_step_cost import constant_step_cost
from tests.exhaustive import EXHAUSTIVE, SUITES, repeats
from tests.json_schemas import is_valid, make_schema

from hasten import LLM, AsyncLLM, RequestOutput, SamplingParams
from hasten.core.errors import InvalidRequest
from hasten.core.output import CompletionOutput
from hasten.core.result import FinishReason, TokenOrigin
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.guides import Guides
from hasten.sampling.guides.grammar_guide import GrammarGuide
from hasten.speculative.cost_model import CostModel

NUMBERS = range(0, SUITES["schemas"].full, SUITES["schemas"].full // repeats("schemas"))
PROMPTS = ("The answer in JSON:\n", "import json\n\ndata = ", "def parse(text):\n    return ")
POINT = {
    "type": "object",
    "properties": {"latitude": {"type": "integer", "minimum": 0, "maximum": 90}, "longitude": {"enum": [0, 90]}},
    "required": ["latitude", "longitude"],
    "additionalProperties": False,
}
FORMS: tuple[dict[str, Any], ...] = (
    {"json": POINT},
    {"regex": "[a-c]{3,5}( [0-9]+){2}"},
    {"choice": ("yes", "no", "perhaps not")},
    {"grammar": 'start: "SELECT " NAME ("," NAME)* " FROM " NAME\nNAME: /[a-z_]{1,8}/'},
    {"grammar": 'root ::= "[" item ("," item)* "]"\nitem ::= "true" | "false" | root'},
    {"json_object": True},
)


def demo_llm(**options: Any) -> LLM:
    defaults = {"speculative_method": "off", "kv_cache_memory": "64MiB", "quantization": "int8", "max_model_len": 512, "threads": 1}
    with constant_step_cost():
        return LLM("demo", **{**defaults, **options})


@pytest.fixture(scope="module")
def plain() -> LLM:
    return demo_llm()


@pytest.fixture(scope="module")
def drafting() -> LLM:
    return demo_llm(speculative_method="auto")


def guided(form: dict[str, Any], **settings: Any) -> SamplingParams:
    defaults = {"temperature": 1.0, "top_p": 0.95, "seed": 5, "max_tokens": 60}
    return SamplingParams(structured_outputs=StructuredOutputs(**form), **{**defaults, **settings})


def mixed_params(**settings: Any) -> list[SamplingParams]:
    """Return settings for every form, some of them in other ways to sample."""
    others: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.0},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"top_k": 20, "min_p": 0.01, "typical_p": 0.95},
        {"logit_bias": {5: 4.0, 17: -4.0}, "logprobs": 2},
    )
    cases = [(form, other) for form in FORMS for other in others][:: 1 if EXHAUSTIVE else 2]
    return [guided(form, **{"seed": i, **other, **settings}) for i, (form, other) in enumerate(cases)]


def run(llm: LLM, params: Sequence[SamplingParams]) -> list[RequestOutput]:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(params))]
    return llm.generate(prompts, list(params), use_tqdm=False)


def matches(form: StructuredOutputs, text: str) -> bool:
    """Return whether a text has the form, by other libraries or a formula of its own."""
    if form.json is not None:
        return is_valid(json.loads(form.json), json.loads(text))
    if form.json_object:
        return isinstance(json.loads(text), dict)
    if form.choice:
        return text in form.choice
    if form.regex is not None:
        return re.fullmatch(form.regex, text) is not None
    if form.grammar == FORMS[3]["grammar"]:
        return re.fullmatch("SELECT [a-z_]{1,8}(,[a-z_]{1,8})* FROM [a-z_]{1,8}", text) is not None
    return isinstance(json.loads(text), list) and re.search(r"[^\[\],a-z]|\[\]", text) is None


def check_form(form: StructuredOutputs, completion: CompletionOutput) -> bool:
    """Check one output, and return whether it is complete."""
    if completion.finish_reason is FinishReason.STOP:
        assert completion.is_complete
    if completion.is_complete:
        assert matches(form, completion.text), (form, completion.text)
    else:
        assert completion.finish_reason is FinishReason.LENGTH
    return bool(completion.is_complete)


def check_forms(params: Sequence[SamplingParams], outputs: Sequence[RequestOutput]) -> int:
    """Check all outputs, and return how many are complete."""
    num_complete = 0
    for settings, output in zip(params, outputs, strict=True):
        assert output.error is None, (settings.structured_outputs, output.error)
        assert settings.structured_outputs is not None
        num_complete += sum([check_form(settings.structured_outputs, completion) for completion in output.outputs])
    return num_complete


def answers(outputs: Sequence[RequestOutput]) -> list[tuple[CompletionOutput, ...]]:
    return [output.outputs for output in outputs]


def test_finished_outputs_validate_and_drafts_and_batches_change_none(plain: LLM, drafting: LLM) -> None:
    """Every schema, sampled in batches with free requests, with and without drafts."""
    free = [SamplingParams(temperature=0.9, seed=i, max_tokens=40) for i in range(6)]
    expected_free = [answers(run(plain, [*free[:i], free[i]]))[i] for i in range(len(free))]
    num_finished, num_drafted = 0, 0
    for start in range(0, len(NUMBERS), 12):
        schemas = [{"json": make_schema(number)} for number in NUMBERS[start : start + 12]]
        params = [guided(schema, seed=number, max_tokens=100) for number, schema in zip(NUMBERS[start:], schemas, strict=False)]
        outputs = run(plain, [*free, *params])
        assert answers(outputs[: len(free)]) == expected_free
        num_finished += check_forms(params, outputs[len(free) :])
        found = run(drafting, [*free, *params])
        assert answers(found) == answers(outputs)
        num_drafted += sum(output.metrics.num_accepted_tokens for output in found)
    assert num_finished >= len(NUMBERS) * 2 / 3
    assert num_drafted > 10 * len(NUMBERS)


@pytest.fixture(scope="module")
def expected(plain: LLM) -> list[RequestOutput]:
    params = mixed_params()
    outputs = run(plain, params)
    assert check_forms(params, outputs) > 0.5 * len(params)
    assert {output.outputs[0].is_complete for output in outputs} == {True, False}
    return outputs


@pytest.mark.parametrize(
    "options",
    [
        {"speculative_method": "auto"},
        {"speculative_method": "prompt_lookup"},
        {"speculative_method": "suffix"},
        {"speculative_method": "draft_model", "draft_model": "demo-draft"},
        {"speculative_method": "eagle", "draft_heads": "demo-eagle"},
        {"speculative_method": "medusa", "draft_heads": "demo-medusa"},
        {"kv_cache_memory": "704KiB", "max_num_batched_tokens": 24, "max_num_seqs": 12, "max_model_len": 128},
        {"kv_cache_memory": "704KiB", "max_num_seqs": 12, "max_model_len": 128, "speculative_method": "auto"},
        {"max_num_seqs": 1},
        {"prefix_caching": False, "batching": "static"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_outputs_are_the_same_however_they_are_computed(options: dict[str, Any], expected: list[RequestOutput]) -> None:
    llm = demo_llm(**options)
    outputs = run(llm, mixed_params())
    assert answers(outputs) == answers(expected)
    if "704KiB" in options.values():
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
    if options.get("speculative_method") in ("draft_model", "eagle", "medusa"):
        assert llm.engine.stats.num_accepted_tokens > sum(output.metrics.num_accepted_tokens for output in expected)


def test_forced_tokens_are_accepted_drafts_where_they_pay(plain: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [guided({"json": POINT}, seed=i, logprobs=0) for i in range(6)]
    undrafted = run(plain, params)
    assert all(set(output.outputs[0].origins) == {TokenOrigin.STEP} for output in undrafted)
    monkeypatch.setattr(plain._loaded.engine, "_costs", CostModel({1: 1.0, 512: 1.01}))
    drafted = run(plain, params)
    assert answers(drafted) == answers(undrafted)
    for output in drafted:
        (completion,) = output.outputs
        forced = completion.text.index("longitude")
        assert json.loads(completion.text).keys() == {"latitude", "longitude"}
        assert TokenOrigin.DRAFT in completion.origins
        assert forced > 0
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.token_ids)
        assert any(token.rank > 1 and token.logprob < -1 for token in completion.logprobs)  # as the model alone has them


def test_log_probabilities_are_those_of_the_model_before_masks(plain: LLM) -> None:
    """The log-probability of a token is that of the model's distribution over all tokens, which scoring gives."""
    output = plain.generate("x = ", guided({"choice": ("Zebra crossing",)}, logprobs=0), use_tqdm=False)[0]
    completion = output.outputs[0]
    scored = plain.score({"prompt_token_ids": list(output.prompt_token_ids)}, [{"token_ids": list(completion.token_ids)}])[0]
    found = [token.logprob for token in completion.logprobs or ()]
    np.testing.assert_allclose(found, scored.logprobs, atol=1e-3)
    assert sum(found) < -20  # no model would have written that


@pytest.mark.parametrize("n", [2, 5] if EXHAUSTIVE else [3])
def test_each_of_several_outputs_has_the_form_and_is_that_of_its_own_noise(n: int, plain: LLM, drafting: LLM) -> None:
    params = [settings for settings in mixed_params(n=n) if settings.temperature > 0]
    outputs = run(plain, params)
    assert check_forms(params, outputs) > 0.5 * n * len(params)
    assert answers(run(drafting, params)) == answers(outputs)
    assert any(len({completion.text for completion in output.outputs}) > 1 for output in outputs)
    alone = run(plain, [settings.replace(n=1) for settings in params])
    assert [output.outputs[0] for output in outputs] == [output.outputs[0] for output in alone]


def test_beams_have_the_form(plain: LLM, drafting: LLM) -> None:
    params = [guided(form, beam_width=3, n=2, temperature=1.0, top_p=1.0, seed=None, max_tokens=40) for form in FORMS]
    outputs = run(plain, params)
    assert check_forms(params, outputs) > 0
    assert answers(run(drafting, params)) == answers(outputs)
    choices = plain.generate(
        "Is it so? ", guided({"choice": ("yes", "no")}, beam_width=4, n=2, top_p=1.0, seed=None), use_tqdm=False
    )
    assert {completion.text for completion in choices[0].outputs} <= {"yes", "no"}
    assert len({completion.token_ids for completion in choices[0].outputs}) == 2


@pytest.mark.parametrize("acceptance", ["typical", "rejection"])
def test_other_ways_to_accept_drafts_keep_the_form(acceptance: str) -> None:
    llm = demo_llm(speculative_method="draft_model", draft_model="demo-draft")
    params = [settings for settings in mixed_params(acceptance=acceptance, logprobs=None) if settings.temperature > 0]
    outputs = run(llm, params)
    assert check_forms(params, outputs) > 0.4 * len(params)
    assert sum(output.metrics.num_accepted_tokens for output in outputs) > 0


@pytest.mark.parametrize("method", ["off", "self_speculation"])
def test_early_exits_keep_the_form(method: str) -> None:
    llm = demo_llm(exits="demo-exits", speculative_method=method)
    for rule in ({"exit_rule": "fixed", "exit_layer": 3}, {"exit_rule": "softmax"}, {"exit_rule": "none"}):
        params = mixed_params(logprobs=None, **rule)
        outputs = run(llm, params)
        assert check_forms(params, outputs) > 0.3 * len(params)
        exited = {layer for output in outputs for layer in output.outputs[0].exit_layers}
        assert bool(exited) == (rule["exit_rule"] != "none")


@pytest.fixture(scope="module")
def events() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_async_streams_give_the_same_outputs(events: asyncio.Runner, expected: list[RequestOutput]) -> None:
    async def stream(llm: AsyncLLM, prompt: str, settings: SamplingParams) -> tuple[str, RequestOutput]:
        text, output = "", None
        async for delta in llm.stream(prompt, settings):
            text += delta.text
            output = delta.output or output
        assert output is not None
        return text, output

    async def run_all() -> list[tuple[str, RequestOutput]]:
        async with AsyncLLM("demo", kv_cache_memory="64MiB", quantization="int8", max_model_len=512, threads=1) as llm:
            pairs = [(PROMPTS[i % len(PROMPTS)], settings) for i, settings in enumerate(mixed_params())]
            with pytest.raises(InvalidRequest, match="the regex of structured_outputs"):
                await llm.generate("x", guided({"regex": "("}))
            return await asyncio.gather(*(stream(llm, *pair) for pair in pairs))

    found = events.run(run_all())
    assert answers([output for _, output in found]) == answers(expected)
    assert [text for text, _ in found] == [output.outputs[0].text for output in expected]


def test_a_hostile_grammar_holds_up_neither_requests_nor_known_forms(events: asyncio.Runner) -> None:
    """While it is vetted, for two seconds, others end; a new form waits for its turn and is not refused for that."""
    multiples = [{"type": "integer", "multipleOf": prime} for prime in (7, 11, 13, 17, 19, 23)]
    ended: list[str] = []

    async def generate(llm: AsyncLLM, name: str, settings: SamplingParams) -> None:
        if name == "hostile":
            with pytest.raises(InvalidRequest, match="takes too long"):
                await llm.generate("x = ", settings)
        else:
            assert (await llm.generate("x = ", settings)).error is None
        ended.append(name)

    async def run_all() -> None:
        async with AsyncLLM("demo", kv_cache_memory="64MiB", quantization="int8", max_model_len=512, threads=1) as llm:
            known = guided({"choice": ("yes", "no")})
            await llm.generate("x = ", known)
            cases = {
                "hostile": guided({"json": {"allOf": multiples}}),
                "new": guided({"choice": ("new",)}),
                "known": known,
                "free": SamplingParams(max_tokens=4),
            }
            await asyncio.gather(*(generate(llm, name, settings) for name, settings in cases.items()))

    events.run(run_all())
    assert set(ended) == {"known", "free", "hostile", "new"}
    assert max(ended.index("known"), ended.index("free")) < ended.index("hostile")


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ({"allowed_token_ids": (0,)}, ("yes", "no")),
        ({"bad_words": ("yes", "no")}, ("yes", "no")),
        ({"min_tokens": 30}, ("yes", "no")),
    ],
)
def test_an_empty_mask_is_the_error_of_its_request_alone(settings: dict[str, Any], choices: tuple[str, ...], plain: LLM) -> None:
    others = [guided({"choice": choices}), SamplingParams(max_tokens=8, seed=1), guided({"json": POINT})]
    alone = answers(run(plain, others))
    broken = guided({"choice": choices}, **settings)
    outputs = plain.generate([PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[0]], [*others, broken], use_tqdm=False)
    assert answers(outputs[:3]) == alone
    assert outputs[3].error is not None
    assert outputs[3].outputs[0].finish_reason is FinishReason.ERROR
    assert outputs[3].outputs[0].is_complete is False


def test_a_guide_that_fails_is_the_error_of_its_request_alone(plain: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [guided({"choice": ("yes", "no")}), SamplingParams(max_tokens=30, seed=1), guided({"json": POINT})]
    alone = answers(run(plain, others))
    ambiguous = guided(
        {"grammar": 'start: s\ns: s s s | s s | "a"'}, max_tokens=400, logit_bias={plain.tokenizer.eos_token_id: -100}
    )
    outputs = plain.generate([*PROMPTS, PROMPTS[0]], [*others, ambiguous], use_tqdm=False)
    assert answers(outputs[:3]) == alone
    assert "the grammar of structured_outputs cannot go on" in str(outputs[3].error)

    def fail(guide: GrammarGuide, token_ids: Sequence[int]) -> Any:
        raise RuntimeError("a fault of the library")

    free = others[1]
    for name in ("mask", "forced_tokens", "is_complete"):
        with monkeypatch.context() as patched:
            patched.setattr(GrammarGuide, name, fail)
            outputs = run(plain, [others[0], free])
        assert "a fault of the library" in str(outputs[0].error)
        assert answers(outputs[1:]) == [alone[1]]


def test_what_ends_an_output_early_marks_it_incomplete(plain: LLM) -> None:
    tokens = plain.tokenizer.encode("no")
    cases: list[tuple[dict[str, Any], dict[str, Any], str, bool]] = [
        ({"regex": "[0-9]{30}"}, {"max_tokens": 3}, "length", False),
        ({"regex": "[0-9]{1,3}"}, {"max_tokens": 1}, "length", True),
        ({"regex": "a{4}b"}, {"stop": ("aa",)}, "stop", False),
        ({"regex": "a{4}b"}, {"stop": ("b",), "include_stop_str_in_output": True}, "stop", False),
        ({"choice": ("no",)}, {"stop_token_ids": (tokens[-1],)}, "stop", False),
        ({"choice": ("no",)}, {"stop_token_ids": (tokens[-1],), "include_stop_str_in_output": True}, "stop", True),
    ]
    for form, settings, reason, is_complete in cases:
        (completion,) = plain.generate("x = ", guided(form, **settings), use_tqdm=False)[0].outputs
        assert (completion.finish_reason, completion.is_complete) == (reason, is_complete), (form, settings, completion)
    assert plain.generate("x = ", SamplingParams(max_tokens=2), use_tqdm=False)[0].outputs[0].is_complete is None


def test_a_stored_result_keeps_whether_it_is_complete() -> None:
    llm = demo_llm(result_cache="memory:")
    params = [guided({"choice": ("yes", "no")}), guided({"regex": "[0-9]{30}"}, max_tokens=3)]
    first, second = run(llm, params), run(llm, params)
    assert [output.metrics.from_result_cache for output in second] == [True, True]
    assert [output.outputs[0].is_complete for output in second] == [True, False]
    assert [dataclasses.replace(each[0], origins=()) for each in answers(second)] == [
        dataclasses.replace(each[0], origins=()) for each in answers(first)
    ]


def test_a_model_without_tokenizer_or_end_token_refuses_a_form(plain: LLM) -> None:
    with pytest.raises(InvalidRequest, match="structured_outputs needs a tokenizer"):
        Guides(None, 8192, (0,)).check(guided({"regex": "a"}))
    with pytest.raises(InvalidRequest, match="structured_outputs needs an end token"):
        Guides(plain.tokenizer, 8192, ()).check(guided({"regex": "a"}))
    Guides(None, 8192, ()).check(SamplingParams())
