"""Medusa and EAGLE heads in the engine guess what they guess alone: each round's drafts against the heads on dense hidden states.

So the states that they are given are those of the right tokens, whatever prefill, chunks, trees and preemption did in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.engine.free_steps import free_steps
from torch import Tensor

from hasten import LLM, HastenError, SamplingParams
from hasten.checkpoints.formats.eagle3 import write_eagle3
from hasten.checkpoints.formats.eagle3_config import Eagle3Config
from hasten.checkpoints.formats.medusa import read_medusa, write_medusa
from hasten.core.draft import Draft
from hasten.core.errors import InvalidOption
from hasten.layers.attention_context import DenseContext
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.models.decoder import Decoder
from hasten.models.eagle import load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.speculative import growth
from hasten.speculative.draft_tree import RANKS
from hasten.speculative.drafters.base import DraftRequest, TargetOutput
from hasten.speculative.drafters.eagle import WIDTH
from hasten.speculative.static_tree import StaticTree
from hasten.speculative.trust import Trust

DEMO = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "model"
VOCAB_SIZE, HIDDEN_SIZE = 8192, 256
ACCURACIES = ((0.6, 0.2, 0.1), (0.5, 0.2), (0.4, 0.1))
LEAST = 0.15  # likely is what an EAGLE head goes on from
SURE = 3.0  # of what an EAGLE head says: so that it goes on from guesses, and now and then from two
TEXTS = ("def add(a, b):\n    return", "import os\nimport sys\n\n\nclass Reader:\n", "The list of all", "x")


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are believed to be as likely as their heads say."""
    monkeypatch.setattr(Trust, "note", lambda *_, **__: None)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(DEMO, dtype="float32", ops=TorchOps()).decoder


@pytest.fixture(scope="module")
def medusa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads of random weights."""
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
    write_medusa(folder, heads, dtype=torch.float32, accuracies=ACCURACIES)
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
    tensors["lm_head.weight"] *= SURE
    tensors["layers.0.self_attn.q_proj.weight"] *= SURE  # a token that is seen by mistake counts
    config = Eagle3Config(layer=layer, draft_vocab_size=len(target_ids), aux_layers=(2, 4, 7))
    write_eagle3(folder, config, tensors, target_ids, VOCAB_SIZE)
    return folder


@torch.no_grad()
def _randomise(tensors: dict[str, Tensor], scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    for tensor in tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + (tensor.dim() == 1))


def states(decoder: Decoder, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
    """After these layers, of a text alone. [T, E] each"""
    context = DenseContext(decoder.ops, decoder.rotary, [len(token_ids)])
    found: dict[int, Tensor] = {}
    with torch.inference_mode():
        hidden = decoder.embed(torch.tensor(token_ids))
        decoder.run(
            hidden, context.positions_T, context, hooks={layer: lambda x, i=layer: found.update({i: x}) for layer in layers}
        )
    return [found[layer] for layer in layers]


def paths_of(draft: Draft) -> list[tuple[int, ...]]:
    """The tokens from the first to that of each node."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


class Branch(NamedTuple):
    tokens: list[int]
    hidden: Tensor  # the state beside each token but the last [T, E]
    chance: float


class Watched:
    """A drafter, of which every draft is checked."""

    def __init__(self, drafter: Any, check: Callable[[DraftRequest, Draft], None]) -> None:
        self.drafter, self.check, self.num_checked = drafter, check, 0
        self.aux_layer_indices = drafter.aux_layer_indices

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> list[Draft]:
        drafts = self.drafter.propose(lines, seen)
        for line, draft in zip(lines, drafts, strict=True):
            if draft:
                self.check(line, draft)
                self.num_checked += 1
        return drafts


def run(folder: Path, kind: str, check: Callable[[DraftRequest, Draft], None], **options: Any) -> Watched:
    common = {"dtype": "float32", "max_model_len": 128, "kv_cache_memory": "64MiB", "num_speculative_tokens": 6}
    with free_steps():
        llm = LLM("demo", speculative_method=kind, draft_heads=str(folder), **{**common, **options})
    watched = Watched(llm.engine._drafter, check)
    llm.engine._drafter = watched
    plain = LLM("demo", speculative_method="off", **{**common, "num_speculative_tokens": None, **options})
    params = [SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, n=1 + i % 2) for i in range(len(TEXTS))]
    found = llm.generate(list(TEXTS), params, use_tqdm=False)
    assert [o.outputs for o in found] == [o.outputs for o in plain.generate(list(TEXTS), params, use_tqdm=False)]
    assert sum(output.metrics.num_drafts for output in found) > 0
    return watched


@pytest.mark.parametrize("options", [{"backend": "torch"}, {}, {"max_num_batched_tokens": 9, "max_num_seqs": 8}])
@pytest.mark.usefixtures("unjudged")
def test_medusa_guesses_from_the_state_before_the_last_token(options: dict[str, Any], decoder: Decoder, medusa: Path) -> None:
    build = LayerContext(TorchOps(), DenseFormatFactory(TorchOps(), torch.float32), torch.float32)
    heads = read_medusa(medusa, hidden_size=HIDDEN_SIZE, vocab_size=VOCAB_SIZE, layer_context=build).heads
    tree = StaticTree.best(ACCURACIES, 24)

    def check(line: DraftRequest, draft: Draft) -> None:
        """Of the paths of the measured tree the likeliest, the likeliest first, up to a rounding."""
        (hidden_TE,) = states(decoder, line.token_ids[:-1], [len(decoder.layers) - 1])
        with torch.inference_mode():
            listed = heads(decoder.norm(hidden_TE[-1:]), decoder.lm_head)[:, 0].softmax(1).topk(3)
        paths: list[tuple[int, ...]] = []
        chances: dict[tuple[int, ...], float] = {}
        for depth, rank, parent in zip(tree.depths, tree.ranks, tree.parents, strict=True):
            before = paths[parent] if parent >= 0 else ()
            paths.append((*before, int(listed.indices[depth, rank])))
            chances[paths[-1]] = chances.get(before, 1.0) * float(listed.values[depth, rank])
        best = sorted(chances.values(), reverse=True)[:6]
        found = paths_of(draft)
        assert len(set(found)) == len(found) == len(best)
        assert [chances[path] for path in found] == pytest.approx(best, abs=1e-4)

    assert run(medusa, "medusa", check, **options).num_checked > 30


@pytest.mark.parametrize("options", [{"backend": "torch"}, {}, {"max_num_batched_tokens": 9, "max_num_seqs": 8}])
@pytest.mark.usefixtures("unjudged")
def test_eagle_guesses_along_its_own_states(
    options: dict[str, Any], decoder: Decoder, eagle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "doubt", lambda *_: LEAST)
    head = load_eagle(eagle, decoder).head

    def check(line: DraftRequest, draft: Draft) -> None:
        """Every branch is a text of its own. Drafts are the likeliest branches, the likeliest first, up to a rounding."""
        with torch.inference_mode():
            fused = head.fuse(torch.cat(states(decoder, line.token_ids[:-1], head.spec.aux_layer_indices), dim=1))
            tips = [Branch(list(line.token_ids), fused, 1.0)]
            chances: dict[tuple[int, ...], float] = {}
            for depth in range(min(5, line.room)):
                grown = []
                for tip in tips:
                    context = DenseContext(head.ops, head.rotary, [len(tip.hidden)])
                    out = head.run(tip.hidden, torch.tensor(tip.tokens[1:]), context.positions_T, context)
                    listed = head.head(out[-1:])[0].softmax(0).topk(RANKS)
                    for p, place in zip(listed.values.tolist(), listed.indices.tolist(), strict=True):
                        tokens = [*tip.tokens, int(head.target_ids[place])]
                        grown.append(Branch(tokens, torch.cat((tip.hidden, out[-1:])), tip.chance * p))
                        chances[tuple(tokens[len(line.token_ids) :])] = tip.chance * p
                tips = sorted((tip for tip in grown if tip.chance >= LEAST), key=lambda tip: -tip.chance)[:WIDTH]
                widths.append((depth, len(tips)))
        paths = paths_of(draft)
        best = sorted(chances.values(), reverse=True)[:12]
        assert len(set(paths)) == len(paths) == len(best)
        assert [chances[path] for path in paths] == pytest.approx(best, abs=1e-4)

    widths: list[tuple[int, int]] = []
    assert run(eagle, "eagle", check, prefix_caching=False, num_speculative_tokens=12, **options).num_checked > 30
    assert sum(width > 1 for _, width in widths) > 20 < sum(depth > 0 and width > 0 for depth, width in widths)


def test_after_a_prefix_hit_eagle_begins_later_and_changes_nothing(eagle: Path) -> None:
    common: dict[str, Any] = {"quantization": "int8", "max_model_len": 256, "kv_cache_memory": "64MiB"}
    llm = LLM("demo", speculative_method="eagle", draft_heads=str(eagle), **common)
    plain = LLM("demo", speculative_method="off", **common)
    prompt, params = TEXTS[1] * 4, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    for _ in range(2):
        (mine,), (theirs,) = llm.generate(prompt, params), plain.generate(prompt, params)
        assert mine.outputs == theirs.outputs and mine.metrics.num_drafts > 0
    assert mine.metrics.num_cached_tokens > 16


def test_heads_of_another_kind_or_another_model_are_refused(eagle: Path, medusa: Path, tiny: Any) -> None:
    with pytest.raises(InvalidOption, match="medusa"):
        LLM("demo", speculative_method="eagle", draft_heads=str(medusa))
    for folder in (eagle, medusa):
        with pytest.raises(HastenError, match="256") as refused:
            LLM(str(tiny("llama-gqa")), draft_heads=str(folder))
        assert "64" in str(refused.value)
