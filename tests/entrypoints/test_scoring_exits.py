"""Scores of requests that leave early: prompt and continuations by as many layers, against the slow way of ``slow_exits``."""

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
from tests.entrypoints.test_scoring import ANSWERS, NAMES, PROMPT, SETTINGS, compare, given, ids
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.engine.scorers import _Prompt

WHOLE = Rule("none")
LAYER, ENTROPY = Rule("fixed", layer=1), Rule("entropy", 0.4)  # by this one some of the prompts leave, and some do not
RULES = [LAYER, Rule("fixed", layer=2), Rule("fixed", layer=3), ENTROPY, Rule("prompt_hash")]


class SlowScores(ReferenceExits):
    @torch.inference_mode()
    def depth(self, prompt: list[int], rule: Rule) -> int:
        self._forget()
        if rule.name == "prompt_hash":
            return text_layer(self.model, prompt)
        if rule.name == "entropy":
            found = ReferenceOutput()
            depth = self._prompt_depth(prompt, rule, found)
            assert found.closest > 1e-4, "a decision too close for float32: take another prompt"
            return depth
        assert rule.layer is not None
        return rule.layer

    @torch.inference_mode()
    def score(self, prompt: list[int], answer: list[int], depth: int) -> list[float]:
        self._forget()
        logprobs = []
        for position, (token, after) in enumerate(zip([*prompt, *answer], [*prompt[1:], *answer, None], strict=True)):
            _, logits_V = self._token(token, position, 0, 1, Rule("fixed", layer=depth), ReferenceOutput())
            if position >= len(prompt) - 1 and after is not None:
                logprobs.append(float(logits_V.log_softmax(-1)[after]))
        return logprobs

    def _forget(self) -> None:
        self.keys = [[] for _ in range(self.num_layers)]
        self.values = [[] for _ in range(self.num_layers)]


def prompt_hash_table(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    config = tiny_reference(name).config
    planes_PE = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(5))
    return planes_PE, torch.tensor([1 + i % config.num_hidden_layers for i in range(8)], dtype=torch.int32)


def text_layer(model: Any, prompt: list[int]) -> int:
    planes_PE, layers = prompt_hash_table(model.hasten_name)
    side_P = planes_PE @ model.model.embed_tokens(torch.tensor(prompt)).mean(0) > 0
    return int(layers[sum(2**i for i, above in enumerate(side_P.tolist()) if above)])


@cache
def slow_way(name: str) -> SlowScores:
    model = tiny_reference(name)
    model.hasten_name = name
    return SlowScores(model, exits_of(name))


@cache
def slow(name: str, prompt: tuple[int, ...], answer: tuple[int, ...], depth: int) -> list[float]:
    return slow_way(name).score(list(prompt), list(answer), depth)


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LLM]:
    folder = tmp_path_factory.mktemp("scoring")

    def made(name: str, **options: Any) -> LLM:
        exits = exits_folder(name, folder / name)
        planes_PE, layers = prompt_hash_table(name)
        tensors = {**load_file(exits / "model.safetensors"), "text_planes": planes_PE, "text_layers": layers}
        save_file(tensors, exits / "model.safetensors", {"format": "pt"})
        return LLM(str(tiny(name)), exits=str(exits), **{**SETTINGS, "speculative_method": "off", **options})

    return made


def asked(rule: Rule, **settings: Any) -> SamplingParams:
    by_rule: dict[str, Any] = {"exit_layer": rule.layer} if rule.name == "fixed" else {}
    by_rule |= {"exit_threshold": rule.threshold} if rule.name == "entropy" else {}
    return SamplingParams(exit_rule=rule.name, **by_rule, **settings)


def check(name: str, llm: LLM, prompt: Sequence[int], answers: Sequence[Sequence[int]], rule: Rule = WHOLE) -> int | None:
    """Returns the depth, None of a request without a rule."""
    if rule is WHOLE:
        test_scoring.check(name, llm, prompt, answers)
        return None
    depth = slow_way(name).depth(list(prompt), rule)
    expected = [slow(name, tuple(prompt), tuple(answer), depth) for answer in answers]
    compare(llm, prompt, answers, expected, asked(rule), depth=depth)
    return depth


def exit_prompts(name: str) -> list[list[int]]:
    return [ids((name, i), 5 + 3 * i) for i in range(6)]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [5, 2048])
def test_exits_equal_the_slow_way(name: str, budget: int, backend: str, load: Callable[..., LLM]) -> None:
    """All rules in turn on one engine, twice: on each other's warm cache, and beside scores of all layers."""
    llm = load(name, backend=backend, max_num_batched_tokens=budget, max_num_seqs=5)
    answers = ANSWERS[:3] + ANSWERS[4:7]
    depths: dict[str, set[int | None]] = {}
    for _ in range(2):
        for prompt in exit_prompts(name):
            for rule in RULES:
                depths.setdefault(rule.name, set()).add(check(name, llm, prompt, answers, rule))
            check(name, llm, prompt, answers)
    num_layers = tiny_reference(name).config.num_hidden_layers
    assert all(len(found) > 1 for found in depths.values()), f"a rule decides nothing: {depths}"
    assert num_layers in depths["entropy"] and min(filter(None, depths["entropy"])) < num_layers


@pytest.mark.parametrize("budget", [5, 2048])
def test_blocks_that_an_exit_left_incomplete_are_found_by_nobody(budget: int, load: Callable[..., LLM]) -> None:
    """Entropy: what all layers computed is there for others, and the row that left is not. A known layer: for its like alone."""
    name = "llama-gqa"
    llm = load(name, max_num_batched_tokens=budget, max_num_seqs=5)
    rule = ENTROPY
    prompt = next(p for p in exit_prompts(name) if len(p) > 12 and slow_way(name).depth(p, rule) < slow_way(name).num_layers)
    plain = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    num_last = (len(prompt) - 1) % budget + 1
    assert check(name, llm, prompt, ANSWERS[:3], rule) != slow_way(name).num_layers
    (output,) = llm.generate({"prompt_token_ids": prompt}, plain, use_tqdm=False)
    assert output.metrics.num_cached_tokens == (len(prompt) - num_last) // 4 * 4
    llm.reset_prefix_cache()
    check(name, llm, prompt, ANSWERS[:3], RULES[1])
    cached = []
    for params in (plain, asked(LAYER), asked(RULES[1])):
        request = {"prompt_token_ids": prompt}
        (output,) = llm.generate(request, params.replace(temperature=0, max_tokens=4), use_tqdm=False)
        cached.append(output.metrics.num_cached_tokens)
    assert cached == [0, 0, (len(prompt) - 1) // 4 * 4]


# ---------------------------------------------------------------- beside whoever runs


@pytest.mark.parametrize("speculation", ["off", "self_speculation", "prompt_lookup"])
@pytest.mark.parametrize("name", NAMES)
def test_streams_do_not_notice(name: str, speculation: str, load: Callable[..., LLM]) -> None:
    """Scores between their steps, of their own prompt too; seeds that later requests draw are the same."""
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=20, ignore_eos=True)
    alone = load(name, seed=9)
    expected = alone.generate([{"prompt_token_ids": p} for p in (PROMPT, ANSWERS[3])], params, use_tqdm=False)
    drawn = alone.generate({"prompt_token_ids": PROMPT}, use_tqdm=False)[0].seed
    llm = load(name, seed=9, speculative_method=speculation)
    streams = [llm.stream({"prompt_token_ids": p}, params) for p in (PROMPT, ANSWERS[3])]
    tokens: list[list[int]] = [[], []]
    for i in range(20):
        for found, stream in zip(tokens, streams, strict=True):
            found += [token for delta in itertools.islice(stream, 1) for token in delta.token_ids]
            rule = [WHOLE, ENTROPY, LAYER][i % 3]
            check(name, llm, [PROMPT, ANSWERS[3]][i % 2], ANSWERS[:3], rule)
    assert tokens == [list(output.outputs[0].token_ids) for output in expected]
    for stream in streams:
        stream.close()
    assert llm.generate({"prompt_token_ids": PROMPT}, use_tqdm=False)[0].seed == drawn
    assert all(allocator.num_held == 0 for allocator in llm.engine.scheduler.kv.allocators)


def test_a_choice_says_where_its_request_left(load: Callable[..., LLM]) -> None:
    llm = load("llama-gqa")
    for rule in RULES:
        with test_scoring.watched(llm) as plans:
            choice = llm.choose({"prompt_token_ids": PROMPT}, given(ANSWERS[:3]), asked(rule))
        # Nothing goes deeper after it, so nothing is filled.
        assert all(row.exit_plan is not None and not row.exit_plan.fill_kv for plan in plans for row in plan.rows)
        assert choice.exit_layer == slow_way("llama-gqa").depth(PROMPT, rule)
    assert llm.choose({"prompt_token_ids": PROMPT}, given(ANSWERS[:3])).exit_layer is None


# ---------------------------------------------------------------- planted faults


@pytest.mark.parametrize("rule", [LAYER, ENTROPY], ids=lambda rule: rule.name)
def test_continuations_that_do_not_leave_with_their_prompt_are_caught(
    rule: Rule, load: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = next(p for p in exit_prompts("llama-gqa") if slow_way("llama-gqa").depth(p, rule) < 3)
    exit_plan = _Prompt.exit_plan
    monkeypatch.setattr(
        _Prompt, "exit_plan", lambda prompt, count, *, is_last=False: exit_plan(prompt, count, is_last=is_last) if is_last else None
    )
    with pytest.raises(AssertionError):
        check("llama-gqa", load("llama-gqa"), prompt, ANSWERS, rule)


def test_an_incomplete_block_that_is_published_is_caught(load: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ENTROPY
    prompt = next(p for p in exit_prompts("llama-gqa") if len(p) > 12 and slow_way("llama-gqa").depth(p, rule) < 3)
    llm = load("llama-gqa")
    commit = llm.engine.scheduler.kv.commit
    monkeypatch.setattr(
        llm.engine.scheduler.kv, "commit", lambda sequence_id, tokens, count, _=None: commit(sequence_id, tokens, count)
    )
    check("llama-gqa", llm, prompt, ANSWERS, rule)
    with pytest.raises(AssertionError):
        check("llama-gqa", llm, prompt, ANSWERS)
