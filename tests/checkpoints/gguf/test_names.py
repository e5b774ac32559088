"""Tensor names equal the table of the ``gguf`` package for every weight of every family."""

from __future__ import annotations

import gguf
import pytest

from hasten.checkpoints.gguf.names import NAME_TABLES, find_layout, is_ignored
from hasten.models.family import find_family

CONFIGS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
    "gpt2": {"tie_word_embeddings": False},
}
NUM_LAYERS = 12  # GPT-2's default
NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_weight_of_the_family_has_its_name(architecture: str) -> None:
    config = {"model_type": architecture, "num_hidden_layers": NUM_LAYERS, **CONFIGS[architecture]}
    family = find_family(config)
    names = gguf.get_tensor_name_map(NUMBERS[architecture], NUM_LAYERS)
    transposed = set()
    for source in family.weights(family.spec(config)):
        stored = names.get_name(source.name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        layout = find_layout(architecture, stored)
        assert layout is not None, stored
        assert layout.name == source.name
        assert layout.transposed == source.transposed
        assert layout.interleaved == (architecture == "llama" and (".q_proj." in source.name or ".k_proj." in source.name))
        transposed.add(layout.transposed)
    assert transposed == ({True, False} if architecture == "gpt2" else {False})


def test_no_name_belongs_to_two_tensors() -> None:
    for table in NAME_TABLES.values():
        names = [*table.top.values(), *table.layer.values()]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "attn_q.weight",
        "blk.0.token_embd.weight",
        "blk.00.attn_q.weight",
        "blk.0.attn_q",
        "blk.0.attn_q.scale",
        "blk.-1.attn_q.weight",
        "blk.1234567.attn_q.weight",
        "blk.٣.attn_q.weight",
        "blk.0.ffn_gate_exps.weight",
        "token_embd.weight\n",
        "model.norm.weight",
        "",
    ],
)
def test_other_names_have_no_layout(name: str) -> None:
    assert find_layout("llama", name) is None


def test_tables_without_weights_are_ignored() -> None:
    assert is_ignored("rope_freqs.weight")
    assert is_ignored("blk.3.attn_rot_embd")
    assert not is_ignored("blk.3.attn_q.weight")
