"""``NativeBackend.batch_dependence``, bit by bit: a row's logits in steps of every size against a step of its own.

Steps of other sizes run other forms of the kernels: few rows or many, in one pass or in blocks, on vectors or in tiles. Each
replay cuts the sequences into random steps of prompt chunks, draft chains and draft trees of several sequences.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.exhaustive import repeats
from torch import Tensor

from hasten.core.engine_options import QUANTIZATIONS
from hasten.core.plan import RowPlan, SlotMove, StepPlan
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.models.load import load_decoder
from hasten.ops.cpu.cpu import Cpu, supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.runners.backends.native import NativeBackend
from hasten.runners.base import KvCacheConfig
from hasten.runners.native_runner import NativeRunner

# 528 inputs are more than one block of inputs; one layer has a window, and the other reads more keys than one split.
HIDDEN, MLP, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 528, 64, 8, 2, 24, 331
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": True,
    "sliding_window": 40,
    "layer_types": ["sliding_attention", "full_attention"],
}
LENGTHS = (600, 100, 20)  # tokens per sequence
# Around the rows at which the kernels change their form: register blocks, streaming, AMX tiles, blocks of rows and of packed rows.
STEP_SIZES = (*range(1, 18), 28, 29, 31, 32, 33, 48, 63, 64, 65, 66, 127, 128, 129, 239, 257, 511, 512, 513, 600)
MAX_WRONG, MAX_TREE_ROW, BLOCK_SIZE = 20, 64, 16

LIBRARY = native_library()
COMBINATIONS = list(
    itertools.product(
        supported_isas(LIBRARY) if isinstance(LIBRARY, NativeLibrary) else [],
        (torch.float32, torch.bfloat16, torch.float16),
        (None, *QUANTIZATIONS),
        (False, True),
    )
)


def name(combination: tuple[str, torch.dtype, str | None, bool]) -> str:
    isa, dtype, quantization, int8_kv = combination
    return f"{isa}-{str(dtype).removeprefix('torch.')}-{quantization or 'plain'}-{'int8' if int8_kv else 'auto'}_kv"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random model; one of its matrices has too many small weights for the 12-bit form of bfloat16."""
    folder = tmp_path_factory.mktemp("random-model")
    generator = torch.Generator().manual_seed(7)

    def matrix(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=generator) * inputs**-0.5

    def vector(size: int) -> Tensor:
        return 1 + 0.2 * torch.randn(size, generator=generator)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN) * 20,
        "model.norm.weight": vector(HIDDEN),
        "lm_head.weight": matrix(VOCAB, HIDDEN),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        parts = {
            "input_layernorm": vector(HIDDEN),
            "post_attention_layernorm": vector(HIDDEN),
            "self_attn.q_norm": vector(HEAD_DIM) * 2,
            "self_attn.k_norm": vector(HEAD_DIM) * 2,
            "self_attn.q_proj": matrix(HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": matrix(HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": matrix(MLP, HIDDEN),
            "mlp.up_proj": matrix(MLP, HIDDEN),
            "mlp.down_proj": matrix(HIDDEN, MLP),
        }
        tensors |= {f"model.layers.{layer}.{part}.weight": tensor for part, tensor in parts.items()}
    tensors["model.layers.1.self_attn.q_proj.weight"][:, ::3] *= 2.0**-60
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@dataclass
class Sequence:
    token_ids: list[int]
    block_table: tuple[int, ...]
    bits: Tensor  # of the logits after each token, computed in steps of one token [N, V]
    done: int = 0

    def slot(self, position: int) -> tuple[int, int]:
        return self.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE


def bits_of(logits_RV: Tensor) -> Tensor:
    return logits_RV.clone().view(torch.int32)


class Replay:
    """Computes the sequences in random steps and compares bits."""

    def __init__(self, runner: NativeRunner, num_groups: int, draw: random.Random) -> None:
        self.runner, self.num_groups, self.draw = runner, num_groups, draw

    def row(self, sequence: Sequence, token_ids: list[int], tree: tuple[int, ...] = ()) -> RowPlan:
        tables = (sequence.block_table,) * self.num_groups
        return RowPlan(id(sequence), sequence.done, tuple(token_ids), tables, len(token_ids), tree)

    def run_separately(self, sequence: Sequence) -> Iterator[Tensor]:
        for position, token in enumerate(sequence.token_ids):
            sequence.done = position
            yield bits_of(self.runner.run(StepPlan((self.row(sequence, [token]),))).logits)

    def same_bits_in_one_step(self, sequences: list[Sequence]) -> bool:
        for sequence in sequences:
            sequence.done = 0
        logits_RV = self.runner.run(StepPlan(tuple(self.row(sequence, sequence.token_ids) for sequence in sequences))).logits
        return torch.equal(bits_of(logits_RV), torch.cat([sequence.bits for sequence in sequences]))

    def same_bits(self, sequences: list[Sequence]) -> bool:
        """Return whether the logits of all tokens are those of steps of one token."""
        for sequence in sequences:
            sequence.done = 0
        same = True
        while waiting := [sequence for sequence in sequences if sequence.done < len(sequence.token_ids)]:
            chosen = self.draw.sample(waiting, self.draw.randint(1, len(waiting)))
            rows, checked = zip(*(self.draft_row(sequence) for sequence in chosen), strict=True)
            bits, begin = bits_of(self.runner.run(StepPlan(rows)).logits), 0
            for sequence, row, indices in zip(chosen, rows, checked, strict=True):
                found = bits[[begin + index for index in indices]]
                same &= torch.equal(found, sequence.bits[sequence.done : sequence.done + len(indices)])
                self.accept(sequence, indices)
                begin += len(row.token_ids)
        return same

    def draft_row(self, sequence: Sequence) -> tuple[RowPlan, list[int]]:
        """Return a row of the next tokens and of wrong draft tokens, and the indices of the right ones."""
        rest = sequence.token_ids[sequence.done :]
        right = rest[: self.draw.choice(STEP_SIZES)]
        wrong = [self.draw.randrange(VOCAB) for _ in range(self.draw.choice((0, 0, 1, 5, MAX_WRONG)))]
        if self.draw.random() < 0.5 or len(right) + len(wrong) > MAX_TREE_ROW:
            return self.row(sequence, right + wrong), [*range(len(right))]
        known = self.draw.randint(1, len(right))  # tokens before the tree
        nodes, tree, path_end = right[:known], [], -1
        path, remaining = [*range(known)], right[known:]
        while remaining or wrong:
            is_right = bool(remaining) and (self.draw.random() < 0.5 or not wrong)
            tree.append(path_end if is_right else self.draw.randrange(-1, len(tree)))
            if is_right:
                path_end = len(tree) - 1
                path.append(len(nodes))
            nodes.append((remaining if is_right else wrong).pop(0))
        return self.row(sequence, nodes, tuple(tree)), path

    def accept(self, sequence: Sequence, indices: list[int]) -> None:
        """Keep the tokens at these indices of the row, without gaps."""
        start = sequence.done
        moves = [
            SlotMove(group, sequence.slot(start + index), sequence.slot(start + i))
            for group in range(self.num_groups)
            for i, index in enumerate(indices)
            if index != i
        ]
        self.runner.move(moves)
        sequence.done += len(indices)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=name)
def test_logits_have_the_same_bits_in_steps_of_every_size_unless_a_reason_is_given(
    checkpoint: Path, combination: tuple[str, torch.dtype, str | None, bool]
) -> None:
    isa, dtype, quantization, int8_kv = combination
    assert isinstance(LIBRARY, NativeLibrary)
    backend = NativeBackend(Cpu(LIBRARY, isa, 1), quantization, draft_quantization=None, int8_kv=int8_kv)
    model = load_decoder(checkpoint, dtype=str(dtype).removeprefix("torch."), ops=backend.ops, formats=backend.formats)
    draw, sequences, num_blocks = random.Random(name(combination)), [], 0
    for length in LENGTHS:
        end = num_blocks + -(-(length + MAX_TREE_ROW) // BLOCK_SIZE)
        token_ids = [draw.randrange(VOCAB) for _ in range(length)]
        sequences.append(Sequence(token_ids, tuple(range(num_blocks, end)), torch.empty(0)))
        num_blocks = end
    groups = kv_groups(model.spec)
    runner = backend.make_runner(
        model.decoder, KvCacheConfig(groups, num_blocks, BLOCK_SIZE, dtype), sum(LENGTHS) + len(LENGTHS) * MAX_WRONG
    )
    replay = Replay(runner, len(groups), draw)
    for sequence in sequences:
        sequence.bits = torch.cat([*replay.run_separately(sequence)])
        assert len(sequence.bits.unique(dim=0)) > len(sequence.bits) // 2
    same = [replay.same_bits_in_one_step(sequences), *(replay.same_bits(sequences) for _ in range(repeats("steps")))]
    assert all(same) == (backend.batch_dependence(dtype) is None), same
