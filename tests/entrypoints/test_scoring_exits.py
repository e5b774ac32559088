"""Scores with an exit rule: prompt and continuations exit after one layer, as in the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.early_exit.reference_exits import ReferenceExits, ReferenceOutput, Rule
from tests.early_exit.test_exits import exits_folder, exits_of
from tests.entrypoints import test_scoring
from tests.entrypoints.test_scoring import CONTINUATIONS, NAMES, PROMPT, SETTINGS, as_input, compare, ids
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.engine.scorers import _Prompt

NO_EXITS = Rule("none")
LAYER, ENTROPY = Rule("fixed", layer=1), Rule("entropy", 0.4)  # with this threshold some of the prompts exit early
RULES = [LAYER, Rule("fixed", layer=2), Rule("fixed", layer=3), ENTROPY, Rule("prompt_hash")]


class ReferenceScores(ReferenceExits):
    @torch.inference_mode()
    def exit_layer(self, prompt: list[int], rule: Rule) -> int:
        self.reset()
        if rule.name == "prompt_hash":
            return prompt_hash_layer(self.model, prompt)
        if rule.name == "entropy":
            output = ReferenceOutput()
            exit_layer = self.prompt_exit_layer(prompt, rule, output)
            assert output.smallest_margin > 1e-4, "a decision is too close for float32: take another prompt"
            return exit_layer
        assert rule.layer is not None
        return rule.layer

    @torch.inference_mode()
    def score(self, prompt: list[int], continuation: list[int], exit_layer: int) -> list[float]:
        self.reset()
        logprobs = []
        tokens, targets = [*prompt, *continuation], [*prompt[1:], *continuation, None]
        for position, (token, target) in enumerate(zip(tokens, targets, strict=True)):
            _, logits_V = self.compute_token(token, position, 0, 1, Rule("fixed", layer=exit_layer), ReferenceOutput())
            if position >= len(prompt) - 1 and target is not None:
                logprobs.append(float(logits_V.log_softmax(-1)[target]))
        return logprobs


def prompt_hash_table(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    config = tiny_reference(name).config
    planes_PE = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(5))
    return planes_PE, torch.tensor([1 + i % config.num_hidden_layers for i in range(8)], dtype=torch.int32)


def prompt_hash_layer(model: Any, prompt: list[int]) -> int:
    planes_PE, layers = prompt_hash_table(model.hasten_name)
    side_P = planes_PE @ model.model.embed_tokens(torch.tensor(prompt)).mean(0) > 0
    return int(layers[sum(2**i for i, above in enumerate(side_P.tolist()) if above)])


@cache
def reference(name: str) -> ReferenceScores:
    model = tiny_reference(name)
    model.hasten_name = name
    return ReferenceScores(model, exits_of(name))


@cache
def reference_score(name: str, prompt: tuple[int, ...], continuation: tuple[int, ...], exit_layer: int) -> list[float]:
    return reference(name).score(list(prompt), list(continuation), exit_layer)


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LLM]:
    folder = tmp_path_factory.mktemp("scoring")

    def load_with_exits(name: str, **options: Any) -> LLM:
        exits = exits_folder(name, folder / name)
        planes_PE, layers = prompt_hash_table(name)
        tensors = {**load_file(exits / "model.safetensors"), "text_planes": planes_PE, "text_layers": layers}
        save_file(tensors, exits / "model.safetensors", {"format": "pt"})
        return LLM(str(tiny(name)), exits=str(exits), **{**SETTINGS, "speculative_method": "off", **options})

    return load_with_exits


def sampling_params(rule: Rule, **settings: Any) -> SamplingParams:
    by_rule: dict[str, Any] = {"exit_layer": rule.layer} if rule.name == "fixed" else {}
    by_rule |= {"exit_threshold": rule.threshold} if rule.name == "entropy" else {}
    return SamplingParams(exit_rule=rule.name, **by_rule, **settings)


def check(name: str, llm: LLM, prompt: Sequence[int], continuations: Sequence[Sequence[int]], rule: Rule = NO_EXITS) -> int | None:
    """Check the scores and return the exit layer, None without an exit rule."""
    if rule is NO_EXITS:
        test_scoring.check(name, llm, prompt, continuations)
        return None
    exit_layer = reference(name).exit_layer(list(prompt), rule)
    expected = [reference_score(name, tuple(prompt), tuple(each), exit_layer) for each in continuations]
    compare(llm, prompt, continuations, expected, sampling_params(rule), exit_layer=exit_layer)
    return exit_layer


def exit_prompts(name: str) -> list[list[int]]:
    return [ids((name, i), 5 + 3 * i) for i in range(6)]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [5, 2048])
def test_scores_equal_the_reference(name: str, budget: int, backend: str, load: Callable[..., LLM]) -> None:
    """All rules in turn on one engine, twice, so that they share its prefix cache."""
    llm = load(name, backend=backend, max_num_batched_tokens=budget, max_num_seqs=5)
    continuations = CONTINUATIONS[:3] + CONTINUATIONS[4:7]
    exit_layers: dict[str, set[int | None]] = {}
    for _ in range(2):
        for prompt in exit_prompts(name):
            for rule in RULES:
                exit_layers.setdefault(rule.name, set()).add(check(name, llm, prompt, continuations, rule))
            check(name, llm, prompt, continuations)
    num_layers = tiny_reference(name).config.num_hidden_layers
    assert all(len(layers) > 1 for layers in exit_layers.values()), f"a rule decides nothing: {exit_layers}"
    assert num_layers in exit_layers["entropy"] and min(filter(None, exit_layers["entropy"])) < num_layers


@pytest.mark.parametrize("budget", [5, 2048])
def test_incomplete_blocks_are_not_shared(budget: int, load: Callable[..., LLM]) -> None:
    """Entropy: other requests share full blocks only. Fixed: requests of one exit layer share blocks."""
    name = "llama-gqa"
    llm = load(name, max_num_batched_tokens=budget, max_num_seqs=5)
    rule = ENTROPY
    prompt = next(p for p in exit_prompts(name) if len(p) > 12 and reference(name).exit_layer(p, rule) < reference(name).num_layers)
    plain = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    num_last = (len(prompt) - 1) % budget + 1
    assert check(name, llm, prompt, CONTINUATIONS[:3], rule) != reference(name).num_layers
    (output,) = llm.generate({"prompt_token_ids": prompt}, plain, use_tqdm=False)
    assert output.metrics.num_cached_tokens == (len(prompt) - num_last) // 4 * 4
    llm.reset_prefix_cache()
    check(name, llm, prompt, CONTINUATIONS[:3], RULES[1])
    cached = []
    for params in (plain, sampling_params(LAYER), sampling_params(RULES[1])):
        request = {"prompt_token_ids": prompt}
        (output,) = llm.generate(request, params.replace(temperature=0, max_tokens=4), use_tqdm=False)
        cached.append(output.metrics.num_cached_tokens)
    assert cached == [0, 0, (len(prompt) - 1) // 4 * 4]


# ---------------------------------------------------------------- beside other work


@pytest.mark.parametrize("speculation", ["off", "self_speculation", "prompt_lookup"])
@pytest.mark.parametrize("name", NAMES)
def test_scoring_changes_no_stream(name: str, speculation: str, load: Callable[..., LLM]) -> None:
    """Scores run between the steps of two streams; the seeds of later requests stay the same."""
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=20, ignore_eos=True)
    alone = load(name, seed=9)
    expected = alone.generate([{"prompt_token_ids": p} for p in (PROMPT, CONTINUATIONS[3])], params, use_tqdm=False)
    next_seed = alone.generate({"prompt_token_ids": PROMPT}, use_tqdm=False)[0].seed
    llm = load(name, seed=9, speculative_method=speculation)
    streams = [llm.stream({"prompt_token_ids": p}, params) for p in (PROMPT, CONTINUATIONS[3])]
    tokens: list[list[int]] = [[], []]
    for i in range(20):
        for streamed, stream in zip(tokens, streams, strict=True):
            streamed += [token for delta in itertools.islice(stream, 1) for token in delta.token_ids]
            rule = [NO_EXITS, ENTROPY, LAYER][i % 3]
            check(name, llm, [PROMPT, CONTINUATIONS[3]][i % 2], CONTINUATIONS[:3], rule)
    assert tokens == [list(output.outputs[0].token_ids) for output in expected]
    for stream in streams:
        stream.close()
    assert llm.generate({"prompt_token_ids": PROMPT}, use_tqdm=False)[0].seed == next_seed
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)


def test_a_choice_reports_its_exit_layer(load: Callable[..., LLM]) -> None:
    llm = load("llama-gqa")
    for rule in RULES:
        with test_scoring.recorded_plans(llm) as plans:
            choice = llm.choose({"prompt_token_ids": PROMPT}, as_input(CONTINUATIONS[:3]), sampling_params(rule))
        # No later token uses more layers, so no KV is filled.
        assert all(row.exit_plan is not None and not row.exit_plan.fill_kv for plan in plans for row in plan.rows)
        assert choice.exit_layer == reference("llama-gqa").exit_layer(PROMPT, rule)
    assert llm.choose({"prompt_token_ids": PROMPT}, as_input(CONTINUATIONS[:3])).exit_layer is None


# ---------------------------------------------------------------- negative controls


@pytest.mark.parametrize("rule", [LAYER, ENTROPY], ids=lambda rule: rule.name)
def test_continuations_with_another_exit_layer_than_their_prompt_are_caught(
    rule: Rule, load: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = next(p for p in exit_prompts("llama-gqa") if reference("llama-gqa").exit_layer(p, rule) < 3)
    exit_plan = _Prompt.exit_plan
    monkeypatch.setattr(
        _Prompt, "exit_plan", lambda prompt, count, *, is_last=False: exit_plan(prompt, count, is_last=is_last) if is_last else None
    )
    with pytest.raises(AssertionError):
        check("llama-gqa", load("llama-gqa"), prompt, CONTINUATIONS, rule)


def test_a_shared_incomplete_block_is_caught(load: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ENTROPY
    prompt = next(p for p in exit_prompts("llama-gqa") if len(p) > 12 and reference("llama-gqa").exit_layer(p, rule) < 3)
    llm = load("llama-gqa")
    commit = llm.engine.scheduler.kv.commit
    monkeypatch.setattr(
        llm.engine.scheduler.kv, "commit", lambda sequence_id, tokens, count, _=None: commit(sequence_id, tokens, count)
    )
    check("llama-gqa", llm, prompt, CONTINUATIONS, rule)
    with pytest.raises(AssertionError):
        check("llama-gqa", llm, prompt, CONTINUATIONS)
