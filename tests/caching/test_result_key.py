"""The key changes with every field that can change an output; every other field stands on a list, with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from hasten.caching import result_key as module
from hasten.caching.result_key import NOT_IN_KEY, EngineIdentity, engine_key, no_key_because, result_key
from hasten.core.engine_options import EngineOptions
from hasten.core.request import PrefixPin, Request, ResultTicket
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs

from ..core.test_check_fields import MAKERS

# Settings that run no request: training, compression, and what measures a model.
RUNS_NO_REQUEST = {
    "SchedulerConfig": "its fields are those of EngineOptions, and the context length of EngineIdentity",
    "TrainOptions": "training",
    "MedusaRecipe": "training",
    "EagleRecipe": "training",
    "DraftModelRecipe": "training",
    "EarlyExitRecipe": "training",
    "SoftPromptRecipe": "training",
    "DpoRecipe": "training",
    "RewardModelRecipe": "training",
    "PolicyRecipe": "training",
    "DistillRecipe": "training",
    "StructuredOutputs": "SamplingParams holds it",
    "Workload": "a benchmark makes requests of it",
    "QuantizeOptions": "compression",
    "CacheOptions": "data for training",
    "SelectOptions": "data for training",
    "PruneOptions": "compression",
    "Lengths": "a prediction of costs",
    "Speculation": "a prediction of costs",
    "Gptq": "compression",
    "Hqq": "compression",
    "Awq": "compression",
    "SmoothQuant": "compression",
    "ServerOptions": "an engine's options are apart from them",
    "ServeOptions": "those of a command: which models, and which engine serves them",
    "TaskOptions": "an evaluation makes requests of it",
    "PromptTemplate": "prompts are made of it",
    "TemplateOptions": "prompts are made of it",
    "Feedback": "people give it",
    "SoftPromptOptions": "an optimisation makes requests of it",
    "InstructionOptions": "an optimisation makes requests of it",
    "DemonstrationOptions": "an optimisation makes requests of it",
    "PezOptions": "an optimisation makes requests of it",
    "GcgOptions": "an optimisation makes requests of it",
    "OptimizationSummary": "it reports an optimisation",
    "PromptFigures": "it reports an optimisation",
}
# Per field: a base in which it is allowed, and another value. A new field fails until it stands here.
BEAMS = {"beam_width": 4, "temperature": 0.0}
OTHER_PARAMS: dict[str, tuple[dict[str, Any], Any]] = {
    "temperature": ({}, 0.5),
    "top_k": ({}, 3),
    "top_p": ({}, 0.5),
    "min_p": ({}, 0.1),
    "typical_p": ({}, 0.9),
    "repetition_penalty": ({}, 1.1),
    "presence_penalty": ({}, 0.1),
    "frequency_penalty": ({}, 0.1),
    "no_repeat_ngram_size": ({}, 2),
    "logit_bias": ({"logit_bias": {1: 1.0, 3: 2.0}}, {1: 2.0, 3: 1.0}),
    "bad_words": ({}, ("a",)),
    "bad_words_ids": ({}, ((1, 2),)),
    "allowed_token_ids": ({}, (1,)),
    "n": ({}, 2),
    "seed": ({}, 2),
    "thinking_token_budget": ({}, 4),
    "min_tokens": ({}, 1),
    "max_tokens": ({}, 9),
    "stop": ({}, ("a",)),
    "stop_token_ids": ({}, (5,)),
    "ignore_eos": ({}, True),
    "structured_outputs": ({"structured_outputs": StructuredOutputs(regex="a")}, StructuredOutputs(regex="b")),
    "include_stop_str_in_output": ({}, True),
    "skip_special_tokens": ({}, False),
    "logprobs": ({}, 0),
    "acceptance": ({}, "typical"),
    "posterior_threshold": ({"acceptance": "typical"}, 0.1),
    "posterior_alpha": ({"acceptance": "typical"}, 0.2),
    "exit_rule": ({"exit_layer": None}, "softmax"),
    "exit_layer": ({"exit_rule": "fixed", "exit_layer": 1}, 2),
    "exit_threshold": ({"exit_rule": "softmax"}, 0.5),
    "exit_tolerance": ({"exit_rule": "softmax"}, 0.5),
    "exit_decay": ({"exit_rule": "softmax", "exit_threshold": 0.5}, 1.0),
    "beam_width": ({"temperature": 0.0}, 2),
    "length_penalty": (BEAMS, 2.0),
    "early_stopping": (BEAMS, True),
}
# Per field of StructuredOutputs: a base, and what changes in it.
OTHER_FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "json": ({"json": '{"type": "integer"}'}, {"json": '{"type": "number"}'}),
    "json_object": ({"json": '{"type": "object"}'}, {"json": None, "json_object": True}),
    "regex": ({"regex": "a"}, {"regex": "b"}),
    "choice": ({"choice": ("a", "b")}, {"choice": ("a",)}),
    "grammar": ({"grammar": 'start: "a"'}, {"grammar": 'start: "b"'}),
    "disable_any_whitespace": ({"json_object": True}, {"disable_any_whitespace": True}),
}
OTHER_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "quantization": "int8",
    "activations": "int8",
    "kv_cache_dtype": "int8",
    "backend": "cpu",
    "threads": 2,
    "revision": "main",
    "max_model_len": 64,
    "kv_cache_memory": 2**20,
    "block_size": 32,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 512,
    "prefix_caching": False,
    "max_pins": 2,
    "max_pinned_share": 0.25,
    "result_cache": "memory:",
    "result_cache_ttl": 5.0,
    "result_cache_bytes": 2**20,
    "result_cache_entries": 9,
    "result_cache_eviction": "lfu",
    "result_cache_timeout": 1.0,
    "speculative_method": "off",
    "draft_model": ({"speculative_method": "draft_model"}, "demo-draft"),
    "draft_heads": ({"speculative_method": "eagle"}, "demo-eagle"),
    "draft_quantization": ({"draft_model": "demo-draft"}, "int4"),
    "self_draft_layers": 2,
    "num_speculative_tokens": 3,
    "exits": "demo-exits",
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
    "batching": "static",
    "max_batch_delay": 1.0,
    "scheduling_policy": "priority",
    "priority_seconds": 1.0,
    "max_stop_strings": 3,
    "max_stop_length": 3,
    "max_bad_words": 3,
    "max_bad_word_length": 3,
    "max_logit_bias": 3,
    "seed": 3,
    "show_progress": True,
}
REQUEST = Request(
    request_id="a",
    prompt_token_ids=(1, 2, 3),
    params=SamplingParams(seed=1, max_tokens=8),
    eos_token_ids=(0,),
    is_determined=True,
)
OTHER_REQUEST: dict[str, Any] = {
    "request_id": "b",
    "prompt_token_ids": (1, 2, 4),
    "eos_token_ids": (0, 1),
    "priority": 1,
    "arrival": 1.0,
    "exit_layer": 1,
    "cache_salt": "tenant",
    "is_determined": False,
    "pins": (PrefixPin(num_tokens=1, seconds=1.0),),
    "result_ticket": ResultTicket(key=b"", looked_up=0.0),
    "use_result_cache": False,
    "virtual_token_ids": (101, 102),
    "soft_prompt_digest": "d",
}
IDENTITY = EngineIdentity(weights="w", text="t", kernels="native avx512", library="l", packages="p", max_model_len=64, version="1")
ENGINE = engine_key(EngineOptions(), IDENTITY)


def names(settings: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(settings)}


def param_keys(name: str) -> tuple[bytes, bytes]:
    """Return the keys of two requests that differ in one sampling setting."""
    base, other = OTHER_PARAMS[name]
    first = REQUEST.params.replace(**base)
    second = SamplingParams.from_dict({**{f: getattr(first, f) for f in names(SamplingParams)}, name: other})
    return tuple(result_key(dataclasses.replace(REQUEST, params=params), ENGINE) for params in (first, second))


def option_keys(name: str) -> tuple[bytes, bytes]:
    other = OTHER_OPTIONS[name]
    if not isinstance(other, tuple):
        return engine_key(EngineOptions(), IDENTITY), engine_key(EngineOptions(**{name: other}), IDENTITY)
    base, value = other
    given = {"speculative_method": "auto"} if "speculative_method" in base else base
    return engine_key(EngineOptions(**given), IDENTITY), engine_key(EngineOptions(**base, **{name: value}), IDENTITY)


def test_the_tables_have_every_field() -> None:
    assert set(OTHER_PARAMS) == names(SamplingParams)
    assert set(OTHER_FORMS) == names(StructuredOutputs)
    assert set(OTHER_OPTIONS) == names(EngineOptions)
    assert set(OTHER_REQUEST) == names(Request) - {"params"}
    for settings, omitted in NOT_IN_KEY.items():
        assert set(omitted) <= names(settings)
        assert all(reason for reason in omitted.values())


def test_every_settings_class_is_in_the_key_or_runs_no_request() -> None:
    assert {settings.__name__ for settings in MAKERS} == {"SamplingParams", "EngineOptions", *RUNS_NO_REQUEST}


@pytest.mark.parametrize("name", OTHER_PARAMS)
def test_a_sampling_setting_changes_the_key_or_is_listed(name: str) -> None:
    first, second = param_keys(name)
    assert (first == second) == (name in NOT_IN_KEY[SamplingParams])


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_an_engine_option_changes_the_key_or_is_listed(name: str) -> None:
    first, second = option_keys(name)
    assert (first == second) == (name in NOT_IN_KEY[EngineOptions])


@pytest.mark.parametrize("name", OTHER_REQUEST)
def test_a_field_of_the_request_changes_the_key_or_is_listed(name: str) -> None:
    other = dataclasses.replace(REQUEST, **{name: OTHER_REQUEST[name]})
    assert (result_key(other, ENGINE) == result_key(REQUEST, ENGINE)) == (name in NOT_IN_KEY[Request])


@pytest.mark.parametrize("name", sorted(names(EngineIdentity)))
def test_every_part_of_the_engine_changes_the_key(name: str) -> None:
    other = dataclasses.replace(IDENTITY, **{name: 65 if name == "max_model_len" else "other"})
    assert engine_key(EngineOptions(), other) != ENGINE
    assert result_key(REQUEST, engine_key(EngineOptions(), other)) != result_key(REQUEST, ENGINE)


def test_a_forgotten_field_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    fields = module._fields

    def forgetful(settings: Any) -> list[tuple[str, object]]:
        return [(name, value) for name, value in fields(settings) if name not in ("top_k", "kv_cache_dtype")]

    monkeypatch.setattr(module, "_fields", forgetful)
    with pytest.raises(AssertionError):
        test_a_sampling_setting_changes_the_key_or_is_listed("top_k")
    with pytest.raises(AssertionError):
        test_an_engine_option_changes_the_key_or_is_listed("kv_cache_dtype")


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"beam_width": 2}], ids=["greedy", "beams"])
def test_the_seed_counts_only_where_random_numbers_do(params: Mapping[str, Any]) -> None:
    keys = {result_key(dataclasses.replace(REQUEST, params=REQUEST.params.replace(**params, seed=seed)), ENGINE) for seed in (1, 2)}
    assert len(keys) == 1


@pytest.mark.parametrize("name", sorted(OTHER_FORMS))
def test_every_setting_of_structured_outputs_changes_the_key(name: str) -> None:
    base, other = OTHER_FORMS[name]
    forms = (StructuredOutputs(**base), StructuredOutputs(**base | other))
    params = [REQUEST.params.replace(structured_outputs=form) for form in forms]
    first, second = (result_key(dataclasses.replace(REQUEST, params=each), ENGINE) for each in params)
    assert first != second


def test_parts_of_the_key_cannot_run_into_each_other() -> None:
    """The end of one field is not the start of the next."""
    pairs = [(("ab",), "c"), (("a",), "bc"), ((), "abc"), (("a", "b"), "c")]
    requests = [dataclasses.replace(REQUEST, params=REQUEST.params.replace(stop=stop), cache_salt=salt) for stop, salt in pairs]
    assert len({result_key(request, ENGINE) for request in requests}) == len(pairs)


@pytest.mark.parametrize(
    ("changes", "is_determined", "reason"),
    [
        ({}, True, None),
        ({}, False, "no_seed"),
        ({"acceptance": "typical"}, True, "lossy_acceptance"),
        ({"acceptance": "rejection"}, True, "lossy_acceptance"),
        ({"acceptance": "typical", "temperature": 0.0}, True, None),
        ({"exit_rule": "softmax", "exit_threshold": 0.5}, True, "early_exit"),
    ],
)
def test_only_determined_requests_have_a_key(changes: dict[str, Any], is_determined: bool, reason: str | None) -> None:
    request = dataclasses.replace(REQUEST, params=REQUEST.params.replace(**changes), is_determined=is_determined)
    assert no_key_because(request) == reason
