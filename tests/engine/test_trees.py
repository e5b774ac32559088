"""A row whose tokens branch gives each of them what the path to it gives as a plain sequence on other blocks.

On the native backend bit by bit, wherever it promises that rows do not depend on their batch; on PyTorch within the bounds below.
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
from hasten.kv.native_pool import NativeKvPool
from hasten.kv.pool import KvPool
from hasten.models.load import load_decoder
from hasten.runners import native_runner
from hasten.runners.backends.choose import choose_backend
from tests.engine.step_rows import Steps, Tree, random_tree
from tests.engine.test_equality import runnable_here
from tests.models.dense import differences

# Model, block size, options. Keys and values are stored in every dtype; a split of 32 panels ends within the rows where blocks
# are small, and the windows are 7 and 8 tokens.
NATIVE = [
    ("llama-gqa", 16, {"dtype": "float32"}),
    ("mistral-window", 1, {"dtype": "bfloat16", "quantization": "int4"}),
    ("qwen2-mixed-window", 5, {"dtype": "float16", "quantization": "int8"}),
    ("qwen3-gqa", 3, {"dtype": "float32", "kv_cache_dtype": "int8"}),
    ("gpt2", 48, {"dtype": "float32", "quantization": "int8", "kv_cache_dtype": "int8"}),
]
TORCH = ["llama-gqa", "gpt2", "mistral-window", "qwen2-mixed-window", "qwen3-gqa"]
Compare = Callable[[Tensor, Tensor], bool]


def batch_invariant(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours, theirs)


def same_model(ours: Tensor, theirs: Tensor) -> bool:
    """The bound by which two models in float32 are called equal."""
    return not differences(ours, theirs)


def steps(folder: Path, block_size: int, **options: str) -> Steps:
    backend = choose_backend(EngineOptions(threads=2 if options["backend"] == "cpu" else 1, **options))
    model = load_decoder(folder, dtype=options["dtype"], ops=backend.ops, formats=backend.formats)
    return Steps(backend, model, block_size)


def some(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(97) for _ in range(draw.randint(low, high))]


def expected(made: Steps, before: Sequence[int], tree: Tree) -> Tensor:
    """The logits after each node, from plain sequences."""
    paths = [tree.path(leaf) for leaf in tree.leaves]
    sequences = [[*before, *(tree.token_ids[node] for node in path)] for path in paths]
    rows: dict[int, Tensor] = {}
    for path, logits_RV in zip(paths, made.plain(*sequences), strict=True):
        rows.update(zip(path, logits_RV[len(before) :], strict=True))
    return torch.stack([rows[node] for node in range(len(tree.parents))])


def wrong_rows(made: Steps, same: Compare, seed: int) -> list[str]:
    """Of a step of several trees beside a long chunk of a prompt and single tokens: what is not as it is alone."""
    made.clear()
    draw = random.Random(seed)
    kinds = ["tree", "tree", "wide tree", "chunk", "one", "one"]
    draw.shuffle(kinds)
    prefixes = [some(draw, 1, 90) for _ in kinds]
    made.run(*[made.row(i, 0, prefix, 0) for i, prefix in enumerate(prefixes)])
    rows: list[RowPlan] = []
    trees: list[Tree] = []
    for i, (kind, prefix) in enumerate(zip(kinds, prefixes, strict=True)):
        trunk = some(draw, 70, 100) if kind == "chunk" else some(draw, 1, 1 if kind == "one" else 3)
        size = {"tree": draw.randint(2, 12), "wide tree": 64 - len(trunk)}.get(kind, 0)
        trees.append(random_tree(draw, some(draw, size, size)))
        row = made.row(i, len(prefix), [*trunk, *trees[-1].token_ids], min(3, len(trunk)) + size, trees[-1].parents)
        rows.append(row)
    logits = made.run(*rows).split([row.num_logits for row in rows])
    wrong = []
    for kind, prefix, row, tree, ours in zip(kinds, prefixes, rows, trees, logits, strict=True):
        size = len(tree.parents)
        trunk = row.token_ids[: len(row.token_ids) - size]
        own = len(ours) - size
        if not same(ours[:own], made.plain([*prefix, *trunk])[0][-own:]):
            wrong.append(f"{kind}: before the tree")
        if size and not same(ours[own:], expected(made, [*prefix, *trunk], tree)):
            wrong.append(f"{kind}: in the tree")
    return wrong


def wrong_turns(made: Steps, same: Compare, seed: int) -> list[int]:
    """One sequence through several trees, of which a path is taken each time: the turns whose logits are wrong."""
    made.clear()
    draw = random.Random(seed)
    tokens = some(draw, 1, 40)
    made.run(made.row(0, 0, tokens, 0))
    wrong = []
    for turn in range(6):
        trunk, tree = some(draw, 1, 2), random_tree(draw, some(draw, 4, 20))
        start = len(tokens)
        tokens += trunk
        row = made.row(0, start, [*trunk, *tree.token_ids], len(tree.parents), tree.parents)
        if not same(made.run(row), expected(made, tokens, tree)):
            wrong.append(turn)
        path = tree.path(draw.choice(tree.leaves))
        path = path[: draw.randint(0 if turn % 3 == 2 else 1, len(path))]
        made.runner.move(made.moves(0, len(tokens), path))
        tokens += [tree.token_ids[node] for node in path]
    return wrong


@pytest.mark.parametrize("isa", runnable_here())
@pytest.mark.parametrize(("name", "block_size", "options"), NATIVE, ids=[f"{name}-{size}" for name, size, _ in NATIVE])
def test_native_rows_have_the_bits_of_their_paths(
    name: str, block_size: int, options: dict[str, str], isa: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CPU_ISA", isa)
    made = steps(tiny(name), block_size, backend="cpu", **options)
    for seed in range(3):
        assert wrong_rows(made, batch_invariant, seed) == []
        assert wrong_turns(made, batch_invariant, seed) == []


@pytest.mark.parametrize("block_size", [5, 16])
@pytest.mark.parametrize("name", TORCH)
def test_torch_rows_equal_their_paths(name: str, block_size: int, tiny: Callable[[str], Path]) -> None:
    made = steps(tiny(name), block_size, backend="torch", dtype="float32")
    for seed in range(2):
        assert wrong_rows(made, same_model, seed) == []
        assert wrong_turns(made, same_model, seed) == []


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.0125)])
def test_torch_rows_of_16_bits(dtype: str, bound: float, tiny: Callable[[str], Path]) -> None:
    """Sums are taken in another order and rounded to 16 bits in every layer."""

    def close(ours: Tensor, theirs: Tensor) -> bool:
        return float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())

    made = steps(tiny("qwen2-mixed-window"), 16, backend="torch", dtype=dtype)
    assert wrong_rows(made, close, 0) == []
    assert wrong_turns(made, close, 0) == []


def see_an_aunt(patch: pytest.MonkeyPatch) -> None:
    """The last token of each tree sees one token more that is not on its path."""
    whole = RowPlan.attention_bitmasks.fget

    def views(row: RowPlan) -> list[int]:
        right: list[int] = whole(row)
        strangers = [token for token in range(len(right) - 1) if not right[-1] >> token & 1]
        return [*right[:-1], right[-1] | 1 << strangers[-1]] if strangers else right

    patch.setattr(RowPlan, "attention_bitmasks", property(views))


def miss_a_parent(patch: pytest.MonkeyPatch) -> None:
    whole = RowPlan.attention_bitmasks.fget

    def views(row: RowPlan) -> list[int]:
        right: list[int] = whole(row)
        parent = len(right) - len(row.tree) + row.tree[-1]
        return [*right[:-1], right[-1] & ~(1 << parent)]

    patch.setattr(RowPlan, "attention_bitmasks", property(views))


def stand_in_line(patch: pytest.MonkeyPatch) -> None:
    """Tokens stand at the positions of their slots."""
    patch.setattr(RowPlan, "positions", property(lambda row: range(row.start, row.stop)))
    patch.setattr(native_runner, "_views", lambda rows: array("Q", [0] * sum(len(row.token_ids) for row in rows)))


def stay(patch: pytest.MonkeyPatch) -> None:
    """The last token of a path stays where it is."""
    for pool in (KvPool, NativeKvPool):
        patch.setattr(pool, "move", _without_last(pool.move))


def _without_last(whole: Callable[..., None]) -> Callable[..., None]:
    def move(self: object, moves: Sequence[SlotMove]) -> None:
        whole(self, moves[:-1])

    return move


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("fault", [see_an_aunt, miss_a_parent, stand_in_line, stay], ids=lambda fault: fault.__name__)
def test_planted_faults_are_caught(
    fault: Callable[[pytest.MonkeyPatch], None], backend: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps(tiny("llama-gqa"), 16, backend=backend, dtype="float32")
    fault(monkeypatch)
    assert wrong_turns(made, same_model, 0) != []
    assert fault is stay or "wide tree: in the tree" in wrong_rows(made, same_model, 0)
