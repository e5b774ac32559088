"""Speculative decoding on batch-invariant kernels changes no output (promises P6 and P9)."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hasten
from hasten import LLM, RequestOutput, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.core.draft import Draft
from hasten.core.errors import InvalidOption
from hasten.core.result import TokenOrigin
from hasten.entrypoints.wiring import speculative_setup
from hasten.quality.documents import read_texts
from hasten.speculative.drafters import draft_model
from hasten.speculative.drafters.base import DraftRequest, TargetOutput
from tests.engine.constant_step_cost import constant_step_cost
from tests.exhaustive import repeats
from tests.scheduling.world import random_tree
from tests.tiny_models import SIZES

HELDOUT = Path(hasten.__file__).parent / "demo" / "heldout.jsonl"
NUM_PROMPTS, NEW_TOKENS = repeats("drafters"), 20
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2},
    {"temperature": 0.8, "seed": 11},
    {"temperature": 1.0, "seed": 12, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.2, "seed": 13, "typical_p": 0.9, "no_repeat_ngram_size": 3},
    {"temperature": 0.7, "seed": 14, "n": 2, "stop": [" the", "self"]},
    {"temperature": 0.0, "min_tokens": 4, "logprobs": 3, "logit_bias": {5: 1.5}},
    {"temperature": 0.0, "beam_width": 3, "n": 2},
)


class OracleDrafter:
    """A ``Drafter`` that knows the outputs.

    It proposes at most ``num_right`` right tokens, then ``num_wrong`` random ones.
    """

    aux_layer_indices = ()

    def __init__(self, outputs: dict[tuple[int, ...], list[RequestOutput]], num_right: int, num_wrong: int) -> None:
        self._outputs, self._num_right, self._num_wrong = outputs, num_right, num_wrong
        self._draw = random.Random(3)

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        return [
            self._draft(self._next_tokens(request), [self._draw.randrange(8192) for _ in range(self._num_wrong)])
            for request in requests
        ]

    def _draft(self, right: Sequence[int], wrong: Sequence[int]) -> Draft:
        return Draft.chain([*right, *wrong])

    def _next_tokens(self, draft_request: DraftRequest) -> tuple[int, ...]:
        prompt, params = draft_request.request.prompt_token_ids, draft_request.request.params
        done = draft_request.num_output_tokens
        for output in self._outputs[prompt]:
            if not params.greedy and output.seed != params.seed:
                continue
            known = output.outputs[draft_request.output_index].token_ids
            if known[:done] == tuple(draft_request.token_ids[len(prompt) :]):
                return known[done : done + self._num_right]
        return ()


def demo_llm(**options: Any) -> LLM:
    defaults = {
        "speculative_method": "off",
        "kv_cache_memory": "64MiB",
        "quantization": "int8",
        "max_model_len": 128,
        "threads": 2,
    }
    with constant_step_cost():
        return LLM("demo", **{**defaults, **options})


@pytest.fixture(scope="module")
def requests() -> list[tuple[dict[str, list[int]], SamplingParams]]:
    """Return pieces of held-out text, half of them repeating their start, with all settings in turn."""
    tokenizer = demo_llm().tokenizer
    draw = random.Random(1)
    ids = [token for text in read_texts(HELDOUT) for token in tokenizer.encode(text)]
    result = []
    for i in range(NUM_PROMPTS):
        start = draw.randrange(len(ids) - 60)
        prompt = ids[start : start + draw.randint(4, 40)]
        if i % 2:
            prompt += prompt[: len(prompt) // 2]
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=i % 3 == 0, **SETTINGS[i % len(SETTINGS)])
        result.append(({"prompt_token_ids": prompt}, params))
    return result


def generate(llm: LLM, requests: list[tuple[dict[str, list[int]], SamplingParams]]) -> list[RequestOutput]:
    prompts, params = zip(*requests, strict=True)
    return llm.generate(list(prompts), list(params), use_tqdm=False)


@pytest.fixture(scope="module")
def reference(requests: list[tuple[dict[str, list[int]], SamplingParams]]) -> tuple[list[RequestOutput], int]:
    """Return the outputs without drafts and the number of steps that they took."""
    llm = demo_llm()
    return generate(llm, requests), llm.engine.stats.num_steps


def assert_same(found: list[RequestOutput], expected: list[RequestOutput]) -> None:
    for output, expected_output in zip(found, expected, strict=True):
        assert output.outputs == expected_output.outputs


def oracle_drafter(
    reference: list[RequestOutput], num_right: int, num_wrong: int, drafter_class: type[OracleDrafter] = OracleDrafter
) -> OracleDrafter:
    outputs: dict[tuple[int, ...], list[RequestOutput]] = {}
    for output in reference:
        outputs.setdefault(output.prompt_token_ids, []).append(output)
    return drafter_class(outputs, num_right, num_wrong)


@pytest.mark.parametrize("method", ["prompt_lookup", "suffix", "auto"])
def test_model_free_drafters_change_no_output(method: str, requests, reference) -> None:
    llm = demo_llm(speculative_method=method)
    found = generate(llm, requests)
    assert_same(found, reference[0])
    stats = llm.engine.stats
    assert stats.speed_up is not None
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert sum(output.metrics.num_accepted_tokens for output in found) == stats.num_accepted_tokens
    assert sum(output.metrics.num_drafted_tokens for output in found) == stats.num_drafted_tokens


@pytest.mark.parametrize(("num_right", "num_wrong"), [(0, 5), (2, 3), (7, 0)])
def test_neither_right_nor_wrong_drafts_change_an_output(num_right: int, num_wrong: int, requests, reference) -> None:
    llm = demo_llm()
    llm.engine._drafter = oracle_drafter(reference[0], num_right, num_wrong)
    assert_same(generate(llm, requests), reference[0])
    accepted, drafted = llm.engine.stats.num_accepted_tokens, llm.engine.stats.num_drafted_tokens
    assert drafted > 1000
    if num_right == 0:
        assert accepted < drafted / 100  # a random token may be right
    if num_wrong == 0:
        # The last token of an output is sampled and never a draft token; some requests have two outputs.
        assert drafted - accepted < 1.2 * NUM_PROMPTS
        assert accepted > drafted * 0.9
        assert llm.engine.stats.num_steps < reference[1] * 0.8  # beams take no drafts


class OracleTreeDrafter(OracleDrafter):
    """An oracle drafter whose wrong tokens hang at random nodes of a tree."""

    def _draft(self, right: Sequence[int], wrong: Sequence[int]) -> Draft:
        return random_tree(self._draw, right, len(wrong))


@pytest.mark.parametrize("num_right", [1, 4])
def test_trees_change_no_output(num_right: int, requests, reference) -> None:
    llm = demo_llm()
    llm.engine._drafter = oracle_drafter(reference[0], num_right, 9, OracleTreeDrafter)
    assert_same(generate(llm, requests), reference[0])
    stats = llm.engine.stats
    assert stats.num_accepted_tokens > 0.7 * stats.num_drafts  # all but the ends of outputs
    assert stats.num_drafted_tokens > 6 * stats.num_drafts


def test_drafts_change_no_output_in_a_small_pool_with_small_steps(requests, reference) -> None:
    """Requests are preempted, and a step holds few tokens; all requests finish with the same outputs."""
    llm = demo_llm(kv_cache_memory="704KiB", max_num_batched_tokens=24, max_num_seqs=12)
    llm.engine._drafter = oracle_drafter(reference[0], 3, 2)
    found = generate(llm, requests[:120])
    assert_same(found, reference[0][:120])
    assert sum(output.metrics.num_preemptions for output in found) > 0
    assert llm.engine.stats.num_accepted_tokens > 100


@pytest.mark.parametrize("drafter_class", [OracleDrafter, OracleTreeDrafter])
def test_every_token_reports_its_origin(drafter_class: type[OracleDrafter], requests, reference) -> None:
    """A delta holds the accepted draft tokens and one more: a correction, a bonus or a plain token."""
    llm = demo_llm()
    llm.engine._drafter = oracle_drafter(reference[0], 3, 2, drafter_class)
    deltas = []
    for prompt, params in requests[:24]:
        if params.beam_width is None:
            deltas += list(llm.stream(prompt, params))
    assert all(len(delta.origins) == len(delta.token_ids) for delta in deltas)
    last_origins = Counter()
    for delta in deltas:
        *before, last = delta.origins
        assert all(origin is TokenOrigin.DRAFT for origin in before)
        assert last is not TokenOrigin.DRAFT or delta.finish_reason is not None
        last_origins[last] += 1
    assert last_origins[TokenOrigin.CORRECTION] + last_origins[TokenOrigin.BONUS] > 50 and last_origins[TokenOrigin.STEP] >= 15
    stats, streamed = llm.engine.stats, [origin for delta in deltas for origin in delta.origins]
    assert stats.num_accepted_tokens == streamed.count(TokenOrigin.DRAFT)
    assert stats.acceptance_by_position[0] > 0.9 and stats.mean_accepted_length == 1 + stats.num_accepted_tokens / stats.num_drafts
    outputs = [delta.output for delta in deltas if delta.output is not None]
    reported = [origin for output in outputs for completion in output.outputs for origin in completion.origins]
    assert Counter(reported) == Counter(streamed)


@pytest.mark.parametrize("rule", ["rejection", "typical"])
def test_other_acceptance_rules_change_no_greedy_output_and_are_reported(rule: str, requests, reference) -> None:
    llm = demo_llm()
    llm.engine._drafter = oracle_drafter(reference[0], 2, 3, OracleTreeDrafter)
    greedy = [
        (i, prompt, params) for i, (prompt, params) in enumerate(requests[:80]) if params.greedy and params.beam_width is None
    ]
    found = llm.generate([p for _, p, _ in greedy], [params.replace(acceptance=rule) for _, _, params in greedy], use_tqdm=False)
    assert [output.outputs for output in found] == [reference[0][i].outputs for i, _, _ in greedy]
    assert {output.metrics.acceptance for output in found} == {rule}


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidOption, match="prompt_lookup"):
        LLM("demo", speculative_method="prompt_lokup")


def test_a_draft_model_changes_no_output(requests, reference) -> None:
    llm = demo_llm(speculative_method="draft_model", draft_model="demo-draft")
    assert_same(generate(llm, requests), reference[0])
    stats = llm.engine.stats
    assert 0 < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert llm.describe()["draft_model"].endswith("draft")


def test_an_eagle_head_changes_no_output(requests, reference) -> None:
    llm = demo_llm(speculative_method="eagle", draft_heads="demo-eagle")
    assert_same(generate(llm, requests), reference[0])
    assert llm.engine.stats.num_accepted_tokens > 0.5 * llm.engine.stats.num_drafts


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("draft_model", {"draft_model": "demo-draft"}),
        ("eagle", {"draft_heads": "demo-eagle"}),
        ("medusa", {"draft_heads": "demo-medusa"}),
        ("self_speculation", {"exits": "demo-exits"}),
    ],
)
def test_drafters_in_four_bits_have_nearly_the_acceptance_rate_of_int8(method: str, weights: dict[str, str], requests) -> None:
    accepted, counts, weight_bytes = {}, {}, {}
    for option, reported in (("auto", "int4"), ("int8", "int8"), ("int4-weight-only", "int4-weight-only")):
        llm = demo_llm(speculative_method=method, **weights, draft_quantization=option)
        description = llm.describe()
        assert description["draft_quantization"] == reported
        weight_bytes[reported] = description["draft_weight_bytes"]
        generate(llm, requests[:60])
        stats = llm.engine.stats
        accepted[reported] = stats.num_accepted_tokens
        counts[reported] = stats.num_drafts, stats.num_drafted_tokens, stats.num_accepted_tokens
    assert 0 < weight_bytes["int4"] < 0.65 * weight_bytes["int8"], weight_bytes
    assert accepted["int4"] > 0.85 * accepted["int8"] and accepted["int4-weight-only"] > 0.85 * accepted["int8"], accepted
    assert counts["int4"] != counts["int8"], "the weights are the same"


def test_medusa_heads_change_no_output(requests, reference) -> None:
    llm = demo_llm(speculative_method="medusa", draft_heads="demo-medusa")
    assert_same(generate(llm, requests), reference[0])
    stats = llm.engine.stats
    assert 0.3 * stats.num_drafts < stats.num_accepted_tokens < stats.num_drafted_tokens


def test_wrong_step_costs_are_corrected_with_any_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs measured at load are far too high."""
    monkeypatch.setattr(speculative_setup, "measure_step_seconds", lambda *_: {1: 10.0, 64: 20.0})
    llm = LLM("demo", speculative_method="draft_model", draft_model="demo-draft", max_model_len=128, kv_cache_memory="64MiB")
    llm.generate("def read(", SamplingParams(temperature=0, max_tokens=96, ignore_eos=True), use_tqdm=False)
    costs = llm.engine._costs
    assert costs is not None
    assert costs.seconds(1) < 1


@pytest.mark.parametrize("memory", ["64MiB", "1MiB"])
def test_self_speculation_changes_no_output(memory: str, requests, reference) -> None:
    """The self-draft layers share the model's KV blocks. With 1 MiB of them, requests are preempted."""
    llm = demo_llm(speculative_method="self_speculation", self_draft_layers=6, kv_cache_memory=memory)
    found = generate(llm, requests)
    assert_same(found, reference[0])
    stats = llm.engine.stats
    assert 0.2 * stats.num_drafted_tokens < stats.num_accepted_tokens < stats.num_drafted_tokens
    assert any(output.metrics.num_preemptions for output in found) == (memory == "1MiB")
    llm.engine.scheduler.kv.check()


def test_auto_with_self_speculation_and_early_exits_changes_no_output(requests, reference) -> None:
    """``auto`` switches between text drafts and self-drafts; the outputs of early exits are not compared."""
    llm = demo_llm(speculative_method="auto", self_draft_layers=6)
    mixed = [
        (prompt, params.replace(exit_rule="fixed", exit_layer=5) if i % 4 == 0 and params.beam_width is None else params)
        for i, (prompt, params) in enumerate(requests)
    ]
    for (_, params), output, expected in zip(mixed, generate(llm, mixed), reference[0], strict=True):
        assert output.outputs == expected.outputs or params.exit_rule == "fixed"
    assert llm.engine.stats.num_accepted_tokens > 0


def test_self_draft_layers_must_be_fewer_than_all_layers() -> None:
    with pytest.raises(InvalidOption, match=r"self_draft_layers=8.*1 to 7"):
        demo_llm(speculative_method="self_speculation", self_draft_layers=8)


def test_all_drafts_are_accepted_if_the_draft_model_is_the_target(requests, reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft model's KV cache must be right after every step, and its noise must be the target's."""
    monkeypatch.setattr(draft_model, "RANKS", 1)  # no alternatives to the most likely token
    llm = demo_llm(speculative_method="draft_model", draft_model="demo", draft_quantization="int8", num_speculative_tokens=5)
    found = generate(llm, requests)
    assert_same(found, reference[0])
    for output, (_, params) in zip(found, requests, strict=True):
        if params.ignore_eos and not params.stop and params.beam_width is None:
            assert output.metrics.num_accepted_tokens == output.metrics.num_drafted_tokens > 0, params
    assert llm.engine.stats.num_steps < reference[1] * 0.6


def test_a_reduced_draft_vocabulary_errs_only_on_tokens_outside_it(requests, reference, tmp_path: Path) -> None:
    """The draft model is the target with half of its vocabulary.

    Its first draft token is right wherever the right token is in that half.
    """
    shutil.copytree(resolve("demo", None, quiet=True), tmp_path / "half")
    draft_vocabulary = set(range(0, 8192, 2))
    save_file({"draft_ids": torch.arange(0, 8192, 2, dtype=torch.int32)}, tmp_path / "half" / "draft_ids.safetensors")
    llm = demo_llm(
        speculative_method="draft_model", draft_model=str(tmp_path / "half"), draft_quantization="int8", num_speculative_tokens=3
    )
    drafter, first_tokens = llm.engine._drafter, {}

    class RecordingDrafter:
        aux_layer_indices = ()

        def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> Sequence[Draft]:
            drafts = drafter.propose(requests, output)
            for request, draft in zip(requests, drafts, strict=True):
                assert set(draft.token_ids) <= draft_vocabulary
                key = (request.request.request_id, request.output_index, request.num_output_tokens)
                first_tokens[key] = draft.token_ids[:1]
            return drafts

    llm.engine._drafter = RecordingDrafter()
    indices = [i for i, (_, params) in enumerate(requests[:120]) if params.beam_width is None]
    found = generate(llm, [requests[i] for i in indices])
    assert_same(found, [reference[0][i] for i in indices])
    num_right = num_wrong = 0
    greedy = [output for output, i in zip(found, indices, strict=True) if requests[i][1].greedy]
    for output in greedy:
        for completion in output.outputs:
            for position, token in enumerate(completion.token_ids):
                drafted = first_tokens.get((output.request_id, completion.index, position))
                num_right += drafted == (token,)
                num_wrong += bool(drafted) and drafted != (token,)
                assert not drafted or drafted == (token,) or token not in draft_vocabulary
    assert min(num_right, num_wrong) > 50


def test_rejection_sampling_samples_tokens_outside_a_reduced_draft_vocabulary(tmp_path: Path) -> None:
    """Tokens outside the draft vocabulary have draft probability 0 and must be sampled all the same."""
    shutil.copytree(resolve("demo", None, quiet=True), tmp_path / "half")
    save_file({"draft_ids": torch.arange(0, 8192, 2, dtype=torch.int32)}, tmp_path / "half" / "draft_ids.safetensors")
    llm = demo_llm(
        speculative_method="draft_model", draft_model=str(tmp_path / "half"), draft_quantization="int8", num_speculative_tokens=3
    )
    params = [SamplingParams(temperature=1.0, seed=i, max_tokens=16, ignore_eos=True, acceptance="rejection") for i in range(20)]
    outputs = llm.generate(["def main():\n"] * 20, params, use_tqdm=False)
    outside = [token % 2 for output in outputs for token in output.outputs[0].token_ids]
    assert all(output.error is None for output in outputs) and 0.2 < sum(outside) / len(outside) < 0.8
    assert llm.engine.stats.num_accepted_tokens > 0


def test_a_drafter_that_fails_is_not_called_again(requests, reference, caplog) -> None:
    class FailingDrafter:
        calls, aux_layer_indices = 0, ()

        def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("injected by the test")
            return [Draft.chain((1, 2, 3)) for _ in requests]

    llm, drafter = demo_llm(), FailingDrafter()
    llm.engine._drafter = drafter
    assert_same(generate(llm, requests[:40]), reference[0][:40])
    assert drafter.calls == 4 and "speculative decoding is off from here on: the drafter failed" in caplog.text


def test_a_draft_model_of_another_vocabulary_is_refused_with_both_sizes(tiny) -> None:
    with pytest.raises(InvalidOption, match="8192") as refused:
        demo_llm(speculative_method="draft_model", draft_model=str(tiny("llama-gqa")))
    assert str(SIZES["vocab_size"]) in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"speculative_method": "draft_model"},
        {"speculative_method": "suffix", "draft_model": "demo-draft"},
        {"speculative_method": "medusa"},
        {"speculative_method": "eagle"},
        {"speculative_method": "off", "draft_heads": "somewhere"},
        {"num_speculative_tokens": 0},
        {"speculative_method": "self_speculation"},
        {"speculative_method": "suffix", "self_draft_layers": 4},
        {"self_draft_layers": 0},
        {"draft_quantization": "int8"},
        {"draft_quantization": "int8", "exits": "demo-exits", "speculative_method": "suffix"},
        {"draft_quantization": "int5", "draft_model": "demo-draft"},
        {"draft_quantization": "int4", "draft_model": "demo-draft", "backend": "torch", "quantization": None},
    ],
)
def test_incomplete_or_contradictory_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        demo_llm(**options)


def test_draft_quantization_needs_exits_with_a_draft_vocabulary(tmp_path: Path) -> None:
    """Exits without a draft vocabulary use the target's lm_head, which has a format already."""
    source = resolve("demo-exits", None)
    tensors = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if name != "draft_ids"}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert demo_llm(speculative_method="self_speculation", exits=str(tmp_path)).describe()["draft_quantization"] is None
    with pytest.raises(InvalidOption, match="full lm_head"):
        demo_llm(speculative_method="self_speculation", exits=str(tmp_path), draft_quantization="int8")


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16", "quantization": None},
        {"dtype": "float16", "quantization": None},
        {"dtype": "bfloat16", "quantization": "int8-weight-only"},
        {"dtype": "bfloat16", "quantization": "int4-weight-only", "kv_cache_dtype": "int8"},
    ],
    ids=["bfloat16", "float16", "int8-weight-only", "int4-weight-only"],
)
def test_by_default_drafts_change_no_output(options: dict[str, Any], requests) -> None:
    """Only AMX multiplies bfloat16 weights differently in larger steps, and there nothing drafts by default."""
    llm = demo_llm(speculative_method=None, **options)
    assert_same(generate(llm, requests[:48]), generate(demo_llm(**options), requests[:48]))
    depends_on_the_step = options["quantization"] is None and options["dtype"] == "bfloat16" and "amx" in llm.describe()["kernels"]
    assert (llm.describe()["speculative_method"] == "off") == depends_on_the_step
    assert (llm.engine.stats.num_accepted_tokens > 0) == (not depends_on_the_step)


def test_auto_that_has_no_effect_is_reported_once_and_only_if_it_was_given() -> None:
    options: dict[str, Any] = {"backend": "torch", "quantization": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", speculative_setup.SpeculationWarning)
        description = demo_llm(speculative_method=None, **options).describe()
        assert not caught
        demo_llm(speculative_method="auto", **options)
        demo_llm(speculative_method="auto")
    reason = description["speculation_off_because"]
    assert (description["speculative_method"], "PyTorch" in reason) == ("off", True)
    assert [str(warning.message) for warning in caught] == [
        f"speculative_method=auto has no effect: {reason}. To draft all the same, name a drafter, such as prompt_lookup."
    ]
    chosen = demo_llm(speculative_method="prompt_lookup", **options).describe()
    assert (chosen["speculative_method"], chosen["speculation_off_because"]) == ("prompt_lookup", None)


def test_exits_hold_no_draft_weights_unless_self_speculation_is_on() -> None:
    off, default = (demo_llm(speculative_method=method, exits="demo-exits").describe() for method in ("off", None))
    assert (off["speculative_method"], off["draft_weight_bytes"]) == ("off", 0)
    assert default["draft_weight_bytes"] > 0
