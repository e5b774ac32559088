"""Tokens that leave early, in batches, chunks and under preemption, against the slow way of ``slow_exits``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.early_exit.reference_exits import Rule, SlowAnswer, SlowExits, TrainedExit
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.core.errors import InvalidRequest

# One with grouped heads, one with head norms, windows of 8 in every other layer, one with biases.
NAMES = ["llama-gqa", "qwen3-mixed-window", "llama-mqa-bias"]
NUM_TOKENS = 24
RULES = [
    Rule("fixed", layer=1),
    Rule("fixed", layer=2),
    Rule("softmax", 0.35),
    Rule("softmax", 0.35, decay=None),
    Rule("saturation", 0.82),
    Rule("classifier", 0.5),
    Rule("entropy", 0.335),
    Rule("token_table"),
]


def exits_of(name: str) -> dict[int, TrainedExit]:
    model = tiny_reference(name)
    size, draw = model.config.hidden_size, torch.Generator().manual_seed(7)
    return {
        layer: TrainedExit(
            torch.randn(size, size, generator=draw) * 0.05,
            torch.randn(size, generator=draw) * 0.3,
            torch.randn(size, generator=draw) * 0.3,
            0.1,
        )
        for layer in range(1, model.config.num_hidden_layers)
    }


def token_layers(name: str) -> tuple[int, ...]:
    config = tiny_reference(name).config
    draw = random.Random(name)
    return tuple(draw.randint(1, config.num_hidden_layers) for _ in range(config.vocab_size))


def exits_folder(name: str, folder: Path, draft_ids: Sequence[int] = (), **more: Any) -> Path:
    """As it is documented, and not by hasten's own writer."""
    config = tiny_reference(name).config
    tensors: dict[str, torch.Tensor] = {"token_layers": torch.tensor(token_layers(name), dtype=torch.int32)}
    if draft_ids:
        tensors["draft_ids"] = torch.tensor(draft_ids, dtype=torch.int32)
    for layer, exit_ in exits_of(name).items():
        tensors |= {
            f"exits.{layer}.translate.weight": exit_.matrix_EE.clone(),
            f"exits.{layer}.translate.bias": exit_.bias_E.clone(),
            f"exits.{layer}.classify.weight": exit_.vector_E.clone(),
            f"exits.{layer}.classify.bias": torch.tensor([exit_.offset]),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = {
        "model_type": "hasten_exits",
        "exit_layers": sorted(exits_of(name)),
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "dtype": "float32",
        "calibrations": [],
        **more,
    }
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LLM]:
    folder = tmp_path_factory.mktemp("exits")

    def made(name: str, **options: Any) -> LLM:
        settings = {"dtype": "float32", "threads": 1, "speculative_method": "off", "kv_cache_memory": "4MiB", "block_size": 4}
        return LLM(str(tiny(name)), exits=str(exits_folder(name, folder / name)), **{**settings, **options})

    return made


def prompts(name: str, count: int = 8) -> list[list[int]]:
    draw = random.Random(name)
    return [[draw.randrange(3, 96) for _ in range(draw.randint(3, 19))] for _ in range(count)]


def asked(rule: Rule, **settings: Any) -> SamplingParams:
    by_rule: dict[str, Any] = {"exit_rule": rule.name, "exit_decay": rule.decay}
    if rule.name == "fixed":
        by_rule = {"exit_rule": "fixed", "exit_layer": rule.layer}
    elif rule.name in ("token_table", "none"):
        by_rule = {"exit_rule": rule.name}
    else:
        by_rule["exit_threshold"] = rule.threshold
    return SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, **by_rule, **settings)


@cache
def slow(name: str, prompt: tuple[int, ...], rule: Rule) -> SlowAnswer:
    rule = Rule(rule.name, rule.threshold, rule.decay, rule.layer, token_layers(name))
    return SlowExits(tiny_reference(name), exits_of(name)).answer(list(prompt), NUM_TOKENS, rule)


def check(name: str, llm: LLM, mixed: list[tuple[list[int], Rule]]) -> list[int]:
    """All requests in one batch; returns the depths of all tokens."""
    ids = [{"prompt_token_ids": prompt} for prompt, _ in mixed]
    outputs = llm.generate(ids, [asked(rule) for _, rule in mixed], use_tqdm=False)
    depths: list[int] = []
    for (prompt, rule), output in zip(mixed, outputs, strict=True):
        wanted, answer = slow(name, tuple(prompt), rule), output.outputs[0]
        assert wanted.closest > 1e-4, "a decision too close for float32: take another prompt"
        assert list(answer.token_ids) == wanted.token_ids, rule
        assert list(answer.exit_layers) == wanted.exit_layers, rule
        assert output.metrics.exit_rule == rule.name
        assert output.metrics.mean_exit_layer == pytest.approx(sum(wanted.exit_layers) / NUM_TOKENS)
        depths += wanted.exit_layers
    llm.engine.scheduler.kv.check()
    return depths


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_mixed_exits_equals_the_slow_way(name: str, backend: str, load: Callable[..., LLM]) -> None:
    """Eight requests at a time, a rule each, and then each rule for another of them."""
    llm = load(name, backend=backend)
    by_rule: dict[str, set[int]] = {}
    for turn in range(4):
        mixed = list(zip(prompts(name), RULES[turn:] + RULES[:turn], strict=True))
        depths = check(name, llm, mixed)
        for i, (_, rule) in enumerate(mixed):
            by_rule.setdefault(rule.name, set()).update(depths[i * NUM_TOKENS : (i + 1) * NUM_TOKENS])
    assert all(len(found) > 1 for found in by_rule.values()), f"a rule decides nothing: {by_rule}"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_preemption_and_the_prefix_cache_change_nothing(name: str, backend: str, load: Callable[..., LLM]) -> None:
    """Too few blocks for all, chunks of 7 tokens; every prompt again without exits, and all of it a second time on a warm cache.

    Blocks whose deeper layers were filled from an exit, or never, must not be found by requests that go all the way.
    """
    roomy = load(name, backend=backend).describe()
    memory = 30 * roomy["kv_bytes"] // roomy["kv_blocks"]
    llm = load(name, backend=backend, kv_cache_memory=memory, max_num_batched_tokens=7, max_num_seqs=7, max_model_len=48)
    whole = Rule("none")
    mixed = [pair for prompt, rule in zip(prompts(name), RULES, strict=True) for pair in ((prompt, rule), (prompt, whole))]
    preempted = 0
    for _ in range(2):
        ids = [{"prompt_token_ids": prompt} for prompt, _ in mixed]
        outputs = llm.generate(ids, [asked(rule) for _, rule in mixed], use_tqdm=False)
        preempted += sum(output.metrics.num_preemptions for output in outputs)
        for (prompt, rule), output in zip(mixed, outputs, strict=True):
            wanted = slow(name, tuple(prompt), rule)
            assert list(output.outputs[0].token_ids) == wanted.token_ids, rule
            assert list(output.outputs[0].exit_layers) == ([] if rule is whole else wanted.exit_layers), rule
    assert preempted > 0
    llm.engine.scheduler.kv.check()


def test_several_answers_of_one_prompt_leave_each_on_its_own(load: Callable[..., LLM]) -> None:
    """n answers fork after the first token; seeded, each equals itself asked alone."""
    llm = load("llama-gqa")
    params = asked(RULES[5], seed=3).replace(temperature=1.0, n=4)
    prompt = {"prompt_token_ids": prompts("llama-gqa")[0]}
    (together,) = llm.generate([prompt], params, use_tqdm=False)
    beside = llm.generate([prompt] * 3, [params, asked(RULES[4]), params], use_tqdm=False)
    assert beside[0].outputs == together.outputs == beside[2].outputs
    assert len({answer.exit_layers for answer in together.outputs}) == 4


def test_what_an_engine_cannot_do_is_refused_with_what_it_can(load: Callable[..., LLM], tiny: Callable[[str], Path]) -> None:
    llm = load("llama-gqa")
    prompt = {"prompt_token_ids": [5, 6, 7]}
    with pytest.raises(InvalidRequest, match=r"fewer layers.*exit_layer=4.*1 to 3"):
        llm.generate(prompt, SamplingParams(exit_rule="fixed", exit_layer=4), use_tqdm=False)
    with pytest.raises(InvalidRequest, match=r"not calibrated.*0\.01.*never calibrated"):
        llm.generate(prompt, SamplingParams(exit_rule="softmax"), use_tqdm=False)
    with pytest.raises(InvalidRequest, match=r"no table.*prompt_hash"):
        llm.generate(prompt, SamplingParams(exit_rule="prompt_hash"), use_tqdm=False)
    bare = LLM(str(tiny("llama-gqa")), dtype="float32", kv_cache_memory="4MiB")
    with pytest.raises(InvalidRequest, match=r"no trained exits.*classifier.*none, fixed"):
        bare.generate(prompt, SamplingParams(exit_rule="classifier", exit_threshold=0.5), use_tqdm=False)
    for wrong in ({"exit_rule": "never"}, {"exit_layer": 2}, {"exit_rule": "fixed"}, {"exit_rule": "softmax", "beam_width": 2}):
        with pytest.raises(InvalidRequest, match="exit_"):
            SamplingParams(temperature=1.0, **wrong)


@pytest.mark.parametrize("rule", ["none", "fixed", "softmax", "saturation", "classifier", "entropy", "token_table", "prompt_hash"])
def test_a_setting_that_the_rule_does_not_read_is_refused(rule: str) -> None:
    """By the table of docs/how-to/early-exit.md."""
    settings: dict[str, Any] = {"exit_rule": rule, **({"exit_layer": 1} if rule == "fixed" else {})}
    by_token = rule in ("softmax", "saturation", "classifier")
    measured = by_token or rule == "entropy"
    limit = {"exit_threshold": 0.5} if measured else {}
    for more, allowed in (
        ({"exit_tolerance": 0.02}, measured),
        ({"exit_threshold": 0.5}, measured),
        ({**limit, "exit_decay": 2.0}, by_token),
        ({**limit, "exit_decay": None}, by_token),
        ({**limit, "exit_decay": 4.0}, True),
        ({"exit_decay": 2.0}, False),
    ):
        if allowed:
            SamplingParams(**settings, **more)
            continue
        name = list(more)[-1]
        with pytest.raises(InvalidRequest, match=rf"{name}={more[name]}.* unless exit_rule measures| without exit_threshold"):
            SamplingParams(**settings, **more)
