"""Early exit in batches, in chunks and under preemption equals the reference of ``reference_exits``."""

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
from tests.early_exit.reference_exits import ReferenceExits, ReferenceOutput, Rule, TrainedExit
from tests.tiny_models import tiny_reference

from hasten import LLM, SamplingParams
from hasten.core.errors import InvalidRequest

# Grouped heads; head norms and windows of 8 in every other layer; biases.
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
    size, generator = model.config.hidden_size, torch.Generator().manual_seed(7)
    return {
        layer: TrainedExit(
            torch.randn(size, size, generator=generator) * 0.05,
            torch.randn(size, generator=generator) * 0.3,
            torch.randn(size, generator=generator) * 0.3,
            0.1,
        )
        for layer in range(1, model.config.num_hidden_layers)
    }


def token_layers(name: str) -> tuple[int, ...]:
    config = tiny_reference(name).config
    generator = random.Random(name)
    return tuple(generator.randint(1, config.num_hidden_layers) for _ in range(config.vocab_size))


def exits_folder(name: str, folder: Path, draft_ids: Sequence[int] = (), **config_changes: Any) -> Path:
    """Write the exits as the format is documented, without hasten's own writer."""
    config = tiny_reference(name).config
    tensors: dict[str, torch.Tensor] = {"token_layers": torch.tensor(token_layers(name), dtype=torch.int32)}
    if draft_ids:
        tensors["draft_ids"] = torch.tensor(draft_ids, dtype=torch.int32)
    for layer, trained in exits_of(name).items():
        tensors |= {
            f"exits.{layer}.translate.weight": trained.matrix_EE.clone(),
            f"exits.{layer}.translate.bias": trained.bias_E.clone(),
            f"exits.{layer}.classify.weight": trained.vector_E.clone(),
            f"exits.{layer}.classify.bias": torch.tensor([trained.offset]),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written_config = {
        "model_type": "hasten_exits",
        "exit_layers": sorted(exits_of(name)),
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "dtype": "float32",
        "calibrations": [],
        **config_changes,
    }
    (folder / "config.json").write_text(json.dumps(written_config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def load(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LLM]:
    folder = tmp_path_factory.mktemp("exits")

    def load_with_exits(name: str, **options: Any) -> LLM:
        settings = {"dtype": "float32", "threads": 1, "speculative_method": "off", "kv_cache_memory": "4MiB", "block_size": 4}
        return LLM(str(tiny(name)), exits=str(exits_folder(name, folder / name)), **{**settings, **options})

    return load_with_exits


def prompts(name: str, count: int = 8) -> list[list[int]]:
    generator = random.Random(name)
    return [[generator.randrange(3, 96) for _ in range(generator.randint(3, 19))] for _ in range(count)]


def sampling_params(rule: Rule, **settings: Any) -> SamplingParams:
    by_rule: dict[str, Any] = {"exit_rule": rule.name, "exit_decay": rule.decay}
    if rule.name == "fixed":
        by_rule = {"exit_rule": "fixed", "exit_layer": rule.layer}
    elif rule.name in ("token_table", "none"):
        by_rule = {"exit_rule": rule.name}
    else:
        by_rule["exit_threshold"] = rule.threshold
    return SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, **by_rule, **settings)


@cache
def reference(name: str, prompt: tuple[int, ...], rule: Rule) -> ReferenceOutput:
    rule = Rule(rule.name, rule.threshold, rule.decay, rule.layer, token_layers(name))
    return ReferenceExits(tiny_reference(name), exits_of(name)).generate(list(prompt), NUM_TOKENS, rule)


def check(name: str, llm: LLM, batch: list[tuple[list[int], Rule]]) -> list[int]:
    """Check all requests as one batch, and return the exit layers of all tokens."""
    ids = [{"prompt_token_ids": prompt} for prompt, _ in batch]
    outputs = llm.generate(ids, [sampling_params(rule) for _, rule in batch], use_tqdm=False)
    exit_layers: list[int] = []
    for (prompt, rule), output in zip(batch, outputs, strict=True):
        expected, completion = reference(name, tuple(prompt), rule), output.outputs[0]
        assert expected.smallest_margin > 1e-4, "a decision is too close for float32: take another prompt"
        assert list(completion.token_ids) == expected.token_ids, rule
        assert list(completion.exit_layers) == expected.exit_layers, rule
        assert output.metrics.exit_rule == rule.name
        assert output.metrics.mean_exit_layer == pytest.approx(sum(expected.exit_layers) / NUM_TOKENS)
        exit_layers += expected.exit_layers
    llm.engine.scheduler.kv.check()
    return exit_layers


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_batches_equal_the_reference(name: str, backend: str, load: Callable[..., LLM]) -> None:
    """Eight requests in a batch, one rule each; then the rules move on by one request."""
    llm = load(name, backend=backend)
    by_rule: dict[str, set[int]] = {}
    for turn in range(4):
        batch = list(zip(prompts(name), RULES[turn:] + RULES[:turn], strict=True))
        exit_layers = check(name, llm, batch)
        for i, (_, rule) in enumerate(batch):
            by_rule.setdefault(rule.name, set()).update(exit_layers[i * NUM_TOKENS : (i + 1) * NUM_TOKENS])
    assert all(len(layers) > 1 for layers in by_rule.values()), f"a rule decides nothing: {by_rule}"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_preemption_and_prefix_caching_change_nothing(name: str, backend: str, load: Callable[..., LLM]) -> None:
    """Few blocks, chunks of 7 tokens, each prompt with and without exits, and all of it twice.

    Blocks whose later layers were filled from an exit, or never, must not be found by requests without exits.
    """
    roomy = load(name, backend=backend).describe()
    memory = 30 * roomy["kv_bytes"] // roomy["kv_blocks"]
    llm = load(name, backend=backend, kv_cache_memory=memory, max_num_batched_tokens=7, max_num_seqs=7, max_model_len=48)
    no_exits = Rule("none")
    batch = [pair for prompt, rule in zip(prompts(name), RULES, strict=True) for pair in ((prompt, rule), (prompt, no_exits))]
    num_preemptions = 0
    for _ in range(2):
        ids = [{"prompt_token_ids": prompt} for prompt, _ in batch]
        outputs = llm.generate(ids, [sampling_params(rule) for _, rule in batch], use_tqdm=False)
        num_preemptions += sum(output.metrics.num_preemptions for output in outputs)
        for (prompt, rule), output in zip(batch, outputs, strict=True):
            expected = reference(name, tuple(prompt), rule)
            assert list(output.outputs[0].token_ids) == expected.token_ids, rule
            assert list(output.outputs[0].exit_layers) == ([] if rule is no_exits else expected.exit_layers), rule
    assert num_preemptions > 0
    llm.engine.scheduler.kv.check()


def test_completions_of_one_prompt_exit_independently(load: Callable[..., LLM]) -> None:
    """n completions fork after the first token; other requests in the batch change none of them."""
    llm = load("llama-gqa")
    params = sampling_params(RULES[5], seed=3).replace(temperature=1.0, n=4)
    prompt = {"prompt_token_ids": prompts("llama-gqa")[0]}
    (alone,) = llm.generate([prompt], params, use_tqdm=False)
    batched = llm.generate([prompt] * 3, [params, sampling_params(RULES[4]), params], use_tqdm=False)
    assert batched[0].outputs == alone.outputs == batched[2].outputs
    assert len({completion.exit_layers for completion in alone.outputs}) == 4


def test_unsupported_exit_rules_are_refused_with_the_supported_ones(load: Callable[..., LLM], tiny: Callable[[str], Path]) -> None:
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
def test_settings_that_the_rule_does_not_use_are_refused(rule: str) -> None:
    """See the table of docs/how-to/early-exit.md."""
    settings: dict[str, Any] = {"exit_rule": rule, **({"exit_layer": 1} if rule == "fixed" else {})}
    per_token = rule in ("softmax", "saturation", "classifier")
    measured = per_token or rule == "entropy"
    threshold = {"exit_threshold": 0.5} if measured else {}
    for changes, allowed in (
        ({"exit_tolerance": 0.02}, measured),
        ({"exit_threshold": 0.5}, measured),
        ({**threshold, "exit_decay": 2.0}, per_token),
        ({**threshold, "exit_decay": None}, per_token),
        ({**threshold, "exit_decay": 4.0}, True),
        ({"exit_decay": 2.0}, False),
    ):
        if allowed:
            SamplingParams(**settings, **changes)
            continue
        name = list(changes)[-1]
        with pytest.raises(InvalidRequest, match=rf"{name}={changes[name]}.* (unless exit_rule (is|tests)|without exit_threshold)"):
            SamplingParams(**settings, **changes)
