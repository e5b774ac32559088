"""The logits of a token tree equal those of its paths, computed as plain sequences on other blocks.

Bit by bit on the native backend wherever it is batch-invariant; within the bounds below on PyTorch.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hasten.core.engine_options import EngineOptions
from hasten.core.plan import RowPlan, SlotMove
from hasten.kv.pool import KvPool, NativeKvPool
from hasten.models.load import load_decoder
from hasten.runners import native_runner
from hasten.runners.backends.choose import choose_backend
from tests.engine.paged_runner import PagedRunner, Tree, random_tree
from tests.engine.test_equality import isas_of_this_cpu
from tests.models.dense import differences

# Model, block size, options. KV caches of every dtype. Small blocks make a split of 32 panels end within a row's KV entries;
# the windows are 7 and 8 tokens.
NATIVE = [
    ("llama-gqa", 16, {"dtype": "float32"}),
    ("mistral-window", 1, {"dtype": "bfloat16", "quantization": "int4"}),
    ("qwen2-mixed-window", 5, {"dtype": "float16", "quantization": "int8"}),
    ("qwen3-gqa", 3, {"dtype": "float32", "kv_cache_dtype": "int8"}),
    ("gpt2", 48, {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "int8"}),
]
TORCH = ["llama-gqa", "gpt2", "mistral-window", "qwen2-mixed-window", "qwen3-gqa"]
Equal = Callable[[Tensor, Tensor], bool]


def bit_equal(actual: Tensor, expected: Tensor) -> bool:
    return torch.equal(actual, expected)


def float32_equal(actual: Tensor, expected: Tensor) -> bool:
    """Apply the bound by which two models in float32 are called equal."""
    return not differences(actual, expected)


def make_runner(folder: Path, block_size: int, **options: str) -> PagedRunner:
    backend = choose_backend(EngineOptions(threads=2 if options["backend"] == "cpu" else 1, **options))
    model = load_decoder(folder, dtype=options["dtype"], ops=backend.ops, formats=backend.formats)
    return PagedRunner(backend, model, block_size)


def random_tokens(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(97) for _ in range(draw.randint(low, high))]


def path_logits(paged: PagedRunner, prefix: Sequence[int], tree: Tree) -> Tensor:
    """Return the logits after each node, computed from plain sequences."""
    paths = [tree.path(leaf) for leaf in tree.leaves]
    sequences = [[*prefix, *(tree.token_ids[node] for node in path)] for path in paths]
    node_logits: dict[int, Tensor] = {}
    for path, logits_RV in zip(paths, paged.prompt_logits(*sequences), strict=True):
        node_logits.update(zip(path, logits_RV[len(prefix) :], strict=True))
    return torch.stack([node_logits[node] for node in range(len(tree.parents))])


def failures_in_a_batch(paged: PagedRunner, equal: Equal, seed: int) -> list[str]:
    """Return the wrong rows of a step of trees, a prompt chunk and single tokens."""
    paged.clear()
    draw = random.Random(seed)
    kinds = ["tree", "tree", "wide tree", "chunk", "one", "one"]
    draw.shuffle(kinds)
    prefixes = [random_tokens(draw, 1, 90) for _ in kinds]
    paged.run(*[paged.row(i, 0, prefix, 0) for i, prefix in enumerate(prefixes)])
    rows: list[RowPlan] = []
    trees: list[Tree] = []
    for i, (kind, prefix) in enumerate(zip(kinds, prefixes, strict=True)):
        trunk = random_tokens(draw, 70, 100) if kind == "chunk" else random_tokens(draw, 1, 1 if kind == "one" else 3)
        size = {"tree": draw.randint(2, 12), "wide tree": 64 - len(trunk)}.get(kind, 0)
        trees.append(random_tree(draw, random_tokens(draw, size, size)))
        row = paged.row(i, len(prefix), [*trunk, *trees[-1].token_ids], min(3, len(trunk)) + size, trees[-1].parents)
        rows.append(row)
    logits = paged.run(*rows).split([row.num_logits for row in rows])
    failures = []
    for kind, prefix, row, tree, actual in zip(kinds, prefixes, rows, trees, logits, strict=True):
        size = len(tree.parents)
        trunk = row.token_ids[: len(row.token_ids) - size]
        num_trunk_logits = len(actual) - size
        expected_trunk = paged.prompt_logits([*prefix, *trunk])[0][-num_trunk_logits:]
        if not equal(actual[:num_trunk_logits], expected_trunk):
            failures.append(f"{kind}: before the tree")
        if size and not equal(actual[num_trunk_logits:], path_logits(paged, [*prefix, *trunk], tree)):
            failures.append(f"{kind}: in the tree")
    return failures


def failed_rounds(paged: PagedRunner, equal: Equal, seed: int) -> list[int]:
    """Verify several trees on one sequence and keep a path of each; return the rounds with wrong logits."""
    paged.clear()
    draw = random.Random(seed)
    tokens = random_tokens(draw, 1, 40)
    paged.run(paged.row(0, 0, tokens, 0))
    failures = []
    for round_index in range(6):
        trunk, tree = random_tokens(draw, 1, 2), random_tree(draw, random_tokens(draw, 4, 20))
        start = len(tokens)
        tokens += trunk
        row = paged.row(0, start, [*trunk, *tree.token_ids], len(tree.parents), tree.parents)
        if not equal(paged.run(row), path_logits(paged, tokens, tree)):
            failures.append(round_index)
        path = tree.path(draw.choice(tree.leaves))
        path = path[: draw.randint(0 if round_index % 3 == 2 else 1, len(path))]
        paged.runner.move(paged.slot_moves(0, len(tokens), path))
        tokens += [tree.token_ids[node] for node in path]
    return failures


@pytest.mark.parametrize("isa", isas_of_this_cpu())
@pytest.mark.parametrize(("name", "block_size", "options"), NATIVE, ids=[f"{name}-{size}" for name, size, _ in NATIVE])
def test_native_tree_logits_equal_path_logits_bit_by_bit(
    name: str, block_size: int, options: dict[str, str], isa: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CPU_ISA", isa)
    paged = make_runner(tiny(name), block_size, backend="cpu", **options)
    for seed in range(3):
        assert failures_in_a_batch(paged, bit_equal, seed) == []
        assert failed_rounds(paged, bit_equal, seed) == []


@pytest.mark.parametrize("block_size", [5, 16])
@pytest.mark.parametrize("name", TORCH)
def test_torch_tree_logits_equal_path_logits(name: str, block_size: int, tiny: Callable[[str], Path]) -> None:
    paged = make_runner(tiny(name), block_size, backend="torch", dtype="float32")
    for seed in range(2):
        assert failures_in_a_batch(paged, float32_equal, seed) == []
        assert failed_rounds(paged, float32_equal, seed) == []


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.0125)])
def test_torch_tree_logits_in_16_bits(dtype: str, bound: float, tiny: Callable[[str], Path]) -> None:
    """The order of summation differs, and every layer rounds to 16 bits."""

    def close(actual: Tensor, expected: Tensor) -> bool:
        return float((actual - expected).abs().max()) <= bound * float(expected.abs().max())

    paged = make_runner(tiny("qwen2-mixed-window"), 16, backend="torch", dtype=dtype)
    assert failures_in_a_batch(paged, close, 0) == []
    assert failed_rounds(paged, close, 0) == []


def attend_outside_the_path(patch: pytest.MonkeyPatch) -> None:
    """The last token of each tree attends to one token that is not on its path."""
    original = RowPlan.attention_bitmasks.fget

    def bitmasks(row: RowPlan) -> list[int]:
        right: list[int] = original(row)
        outside_path = [token for token in range(len(right) - 1) if not right[-1] >> token & 1]
        return [*right[:-1], right[-1] | 1 << outside_path[-1]] if outside_path else right

    patch.setattr(RowPlan, "attention_bitmasks", property(bitmasks))


def mask_out_a_parent(patch: pytest.MonkeyPatch) -> None:
    original = RowPlan.attention_bitmasks.fget

    def bitmasks(row: RowPlan) -> list[int]:
        right: list[int] = original(row)
        parent = len(right) - len(row.tree) + row.tree[-1]
        return [*right[:-1], right[-1] & ~(1 << parent)]

    patch.setattr(RowPlan, "attention_bitmasks", property(bitmasks))


def use_slots_as_positions(patch: pytest.MonkeyPatch) -> None:
    """Each token gets the position of its slot, as in a chain."""
    patch.setattr(RowPlan, "positions", property(lambda row: range(row.start, row.stop)))
    patch.setattr(native_runner, "_attention_bitmasks", lambda rows: array("Q", [0] * sum(len(row.token_ids) for row in rows)))


def skip_the_last_move(patch: pytest.MonkeyPatch) -> None:
    """The keys and values of a path's last token are not moved."""
    for pool in (KvPool, NativeKvPool):
        patch.setattr(pool, "move", _without_last_move(pool.move))


def _without_last_move(original: Callable[..., None]) -> Callable[..., None]:
    def move(self: object, moves: Sequence[SlotMove]) -> None:
        original(self, moves[:-1])

    return move


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(
    "fault",
    [attend_outside_the_path, mask_out_a_parent, use_slots_as_positions, skip_the_last_move],
    ids=lambda fault: fault.__name__,
)
def test_planted_faults_are_caught(
    fault: Callable[[pytest.MonkeyPatch], None], backend: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paged = make_runner(tiny("llama-gqa"), 16, backend=backend, dtype="float32")
    fault(monkeypatch)
    assert failed_rounds(paged, float32_equal, 0) != []
    assert fault is skip_the_last_move or "wide tree: in the tree" in failures_in_a_batch(paged, float32_equal, 0)
