"""Medusa and EAGLE heads draft in the engine what they draft alone, on dense hidden states.

So the engine gives them the hidden states of the right tokens, whatever prefill, chunks, trees and preemption did before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.engine.constant_step_cost import constant_step_cost
from torch import Tensor

from hasten import LLM, HastenError, SamplingParams
from hasten.checkpoints.formats.eagle3 import Eagle3Config, write_eagle3
from hasten.checkpoints.formats.medusa import read_medusa, write_medusa
from hasten.core.draft import Draft
from hasten.core.errors import InvalidOption
from hasten.layers.attention import DenseContext
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.models.decoder import Decoder
from hasten.models.eagle import load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.speculative import policy
from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.draft_tree import RANKS
from hasten.speculative.drafters.base import DraftRequest, TargetOutput
from hasten.speculative.drafters.eagle import WIDTH

DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
VOCAB_SIZE, HIDDEN_SIZE = 8192, 256
MIN_PROBABILITY = 0.15  # of a node that the EAGLE head expands
SHARPNESS = 3.0  # of the EAGLE head's logits, so that one or two nodes of a depth are likely enough to expand
TEXTS = ("def add(a, b):\n    return", "import os\nimport sys\n\n\nclass Reader:\n", "The list of all", "x")
OPTIONS: list[dict[str, Any]] = [{"backend": "torch"}, {}, {"max_num_batched_tokens": 9, "max_num_seqs": 8}]


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance probabilities stay those of the heads."""
    monkeypatch.setattr(AcceptanceCalibration, "record", lambda *_, **__: None)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(DEMO, dtype="float32", ops=TorchOps()).decoder


@pytest.fixture(scope="module")
def medusa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three heads with random weights."""
    folder = tmp_path_factory.mktemp("medusa")
    spec = MedusaSpec(
        num_heads=3,
        num_layers=1,
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        truncated_vocab_size=VOCAB_SIZE,
        bias=True,
        lm_head="model",
    )
    heads = MedusaHeads(spec, LayerContext(TorchOps(), DenseFormatFactory(TorchOps(), torch.float32), torch.float32))
    _randomise(dict(heads.named_parameters()), 0.3)
    write_medusa(folder, heads, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def eagle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eagle")
    layer = json.loads((DEMO / "config.json").read_text()) | {"num_hidden_layers": 1}
    target_ids = torch.arange(0, VOCAB_SIZE, 2)
    dim, heads, kv_heads = layer["head_dim"], layer["num_attention_heads"], layer["num_key_value_heads"]
    shapes = {
        "fc.weight": (HIDDEN_SIZE, 3 * HIDDEN_SIZE),
        "norm.weight": (HIDDEN_SIZE,),
        "lm_head.weight": (len(target_ids), HIDDEN_SIZE),
        **{f"layers.0.{name}.weight": (HIDDEN_SIZE,) for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")},
        "layers.0.self_attn.q_proj.weight": (heads * dim, 2 * HIDDEN_SIZE),
        "layers.0.self_attn.k_proj.weight": (kv_heads * dim, 2 * HIDDEN_SIZE),
        "layers.0.self_attn.v_proj.weight": (kv_heads * dim, 2 * HIDDEN_SIZE),
        "layers.0.self_attn.o_proj.weight": (HIDDEN_SIZE, heads * dim),
        "layers.0.mlp.gate_proj.weight": (layer["intermediate_size"], HIDDEN_SIZE),
        "layers.0.mlp.up_proj.weight": (layer["intermediate_size"], HIDDEN_SIZE),
        "layers.0.mlp.down_proj.weight": (HIDDEN_SIZE, layer["intermediate_size"]),
    }
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    _randomise(tensors, 0.1)
    tensors["lm_head.weight"] *= SHARPNESS
    tensors["layers.0.self_attn.q_proj.weight"] *= SHARPNESS  # attention to a wrong token must change the result
    config = Eagle3Config(layer=layer, draft_vocab_size=len(target_ids), aux_layers=(2, 4, 7))
    write_eagle3(folder, config, tensors, target_ids, VOCAB_SIZE)
    return folder


@torch.no_grad()
def _randomise(tensors: dict[str, Tensor], scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    for tensor in tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + (tensor.dim() == 1))


def hidden_states(decoder: Decoder, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
    """Return the hidden states of one text after these layers, [T, E] each."""
    context = DenseContext(decoder.ops, decoder.rotary, [len(token_ids)])
    states: dict[int, Tensor] = {}
    hooks = {layer: partial(states.__setitem__, layer) for layer in layers}
    with torch.inference_mode():
        decoder.run(decoder.embed(torch.tensor(token_ids)), context.positions_T, context, hooks=hooks)
    return [states[layer] for layer in layers]


def paths_of(draft: Draft) -> list[tuple[int, ...]]:
    """Return the tokens from the first node to each node."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def check_best(draft: Draft, probabilities: dict[tuple[int, ...], float], num_nodes: int) -> None:
    """Check that the draft holds the most likely paths, best first, up to a rounding."""
    best = sorted(probabilities.values(), reverse=True)[:num_nodes]
    paths = paths_of(draft)
    assert len(set(paths)) == len(paths) == len(best)
    assert [probabilities[path] for path in paths] == pytest.approx(best, abs=1e-4)


class Branch(NamedTuple):
    tokens: list[int]
    hidden: Tensor  # the state beside each token but the last [T, E]
    probability: float


class CheckedDrafter:
    """A drafter whose every draft is checked."""

    def __init__(self, drafter: Any, check: Callable[[DraftRequest, Draft], None]) -> None:
        self.drafter, self.check, self.num_checked = drafter, check, 0
        self.aux_layer_indices = drafter.aux_layer_indices

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> list[Draft]:
        drafts = self.drafter.propose(requests, output)
        for request, draft in zip(requests, drafts, strict=True):
            if draft:
                self.check(request, draft)
                self.num_checked += 1
        return drafts


def run(folder: Path, method: str, check: Callable[[DraftRequest, Draft], None], **options: Any) -> CheckedDrafter:
    common = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory": "64MiB", "num_speculative_tokens": 6}
    with constant_step_cost():
        llm = LLM("demo", speculative_method=method, draft_heads=str(folder), **{**common, **options})
    drafter = CheckedDrafter(llm.engine._drafter, check)
    llm.engine._drafter = drafter
    plain = LLM("demo", speculative_method="off", **{**common, "num_speculative_tokens": None, **options})
    params = [SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, n=1 + i % 2) for i in range(len(TEXTS))]
    outputs = llm.generate(list(TEXTS), params, use_tqdm=False)
    assert [o.outputs for o in outputs] == [o.outputs for o in plain.generate(list(TEXTS), params, use_tqdm=False)]
    assert sum(output.metrics.num_drafts for output in outputs) > 0
    return drafter


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.usefixtures("uncalibrated")
def test_medusa_drafts_from_the_hidden_state_before_the_last_token(options: dict[str, Any], decoder: Decoder, medusa: Path) -> None:
    layer_context = LayerContext(TorchOps(), DenseFormatFactory(TorchOps(), torch.float32), torch.float32)
    heads = read_medusa(medusa, hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, layer_context=layer_context).heads

    def check(request: DraftRequest, draft: Draft) -> None:
        """Heads are independent: the probability of a path is the product over its heads."""
        (hidden_TE,) = hidden_states(decoder, request.token_ids[:-1], [len(decoder.layers) - 1])
        with torch.inference_mode():
            probs_HV = heads(decoder.norm(hidden_TE[-1:]), decoder.lm_head)[:, 0].softmax(1)
        probabilities: dict[tuple[int, ...], float] = {(): 1.0}
        for probs_V in probs_HV:
            top = probs_V.topk(RANKS)
            choices = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            longest = max(map(len, probabilities))
            ends = {path: p for path, p in probabilities.items() if len(path) == longest}
            probabilities |= {(*path, token): p * prob for path, p in ends.items() for token, prob in choices}
        del probabilities[()]
        check_best(draft, probabilities, 6)

    assert run(medusa, "medusa", check, **options).num_checked > 30


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.usefixtures("uncalibrated")
def test_eagle_drafts_along_its_own_hidden_states(
    options: dict[str, Any], decoder: Decoder, eagle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "min_expand_probability", lambda *_: MIN_PROBABILITY)
    head = load_eagle(eagle, decoder).head
    widths: list[tuple[int, int]] = []  # (depth, number of expanded nodes)

    def check(request: DraftRequest, draft: Draft) -> None:
        """Each branch is computed as a text of its own."""
        with torch.inference_mode():
            states = hidden_states(decoder, request.token_ids[:-1], head.spec.aux_layer_indices)
            frontier = [Branch(list(request.token_ids), head.fuse(torch.cat(states, dim=1)), 1.0)]
            probabilities: dict[tuple[int, ...], float] = {}
            for depth in range(min(5, request.max_draft_tokens)):
                grown = []
                for branch in frontier:
                    context = DenseContext(head.ops, head.rotary, [len(branch.hidden)])
                    out = head.run(branch.hidden, torch.tensor(branch.tokens[1:]), context.positions_T, context)
                    top = head.head(out[-1:])[0].softmax(0).topk(RANKS)
                    for probability, column in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                        tokens = [*branch.tokens, int(head.target_ids[column])]
                        grown.append(Branch(tokens, torch.cat((branch.hidden, out[-1:])), branch.probability * probability))
                        probabilities[tuple(tokens[len(request.token_ids) :])] = grown[-1].probability
                likely = [branch for branch in grown if branch.probability >= MIN_PROBABILITY]
                frontier = sorted(likely, key=lambda branch: -branch.probability)[:WIDTH]
                widths.append((depth, len(frontier)))
        check_best(draft, probabilities, 12)

    assert run(eagle, "eagle", check, prefix_caching=False, num_speculative_tokens=12, **options).num_checked > 30
    assert sum(width > 1 for _, width in widths) > 20 < sum(depth > 0 and width > 0 for depth, width in widths)


def test_eagle_after_a_prefix_cache_hit_starts_later_and_changes_no_output(eagle: Path) -> None:
    common: dict[str, Any] = {"quantization": "int8", "max_model_len": 256, "kv_cache_memory": "64MiB"}
    llm = LLM("demo", speculative_method="eagle", draft_heads=str(eagle), **common)
    plain = LLM("demo", speculative_method="off", **common)
    prompt, params = TEXTS[1] * 4, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    for _ in range(2):
        (drafted,), (expected,) = llm.generate(prompt, params), plain.generate(prompt, params)
        assert drafted.outputs == expected.outputs and drafted.metrics.num_drafts > 0
    assert drafted.metrics.num_cached_tokens > 16


def test_heads_of_another_kind_or_another_model_are_refused(eagle: Path, medusa: Path, tiny: Any) -> None:
    with pytest.raises(InvalidOption, match="medusa"):
        LLM("demo", speculative_method="eagle", draft_heads=str(medusa))
    for folder in (eagle, medusa):
        with pytest.raises(HastenError, match="256") as refused:
            LLM(str(tiny("llama-gqa")), draft_heads=str(folder))
        assert "64" in str(refused.value)
