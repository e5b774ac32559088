"""Whole blocks as bytes: both pools return what was written, and the cache manager takes them as ordinary prefix blocks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch

from hasten.core.errors import CapacityError
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.kv.pool import BlockPool, KvPool, NativeKvPool
from hasten.kv.prefix_hash import extend_hashes
from hasten.ops.cpu.cpu import Cpu, Dtype, find_cpu

GROUPS = (KvGroup((1, 3), 2, 8), KvGroup((0, 2), 1, 5, window=6))
SIZE, NUM_BLOCKS = 4, 12


def pools() -> list[BlockPool]:
    cpu = find_cpu(1)
    dtypes = (Dtype.BFLOAT16, Dtype.INT8)
    native = [NativeKvPool(cpu, GROUPS, NUM_BLOCKS, SIZE, dtype) for dtype in dtypes if isinstance(cpu, Cpu)]
    return [*native, KvPool(GROUPS, NUM_BLOCKS, SIZE, dtype=torch.float32, device=torch.device("cpu"))]


@pytest.mark.parametrize("pool", pools(), ids=lambda pool: type(pool).__name__)
def test_a_pool_returns_the_blocks_of_each_layer_that_were_written(pool: BlockPool) -> None:
    generator = torch.Generator().manual_seed(1)
    written = {}
    for layer in range(4):
        data = torch.randint(256, (NUM_BLOCKS, pool.block_bytes(layer)), generator=generator, dtype=torch.uint8)
        pool.write_blocks(layer, range(NUM_BLOCKS), data)
        written[layer] = data
    for layer, blocks in ((0, [3, 0, 7]), (1, [11]), (2, []), (3, [5, 4, 3, 2])):
        new = torch.randint(256, (len(blocks), pool.block_bytes(layer)), generator=generator, dtype=torch.uint8)
        pool.write_blocks(layer, blocks, new)
        written[layer][blocks] = new
    for layer in range(4):
        out = torch.empty(3, pool.block_bytes(layer), dtype=torch.uint8)
        pool.read_blocks(layer, [9, 3, 4], out)
        assert torch.equal(out, written[layer][[9, 3, 4]])


def test_blocks_of_a_torch_pool_are_its_keys_and_then_its_values() -> None:
    pool = KvPool(GROUPS, NUM_BLOCKS, SIZE, dtype=torch.float32, device=torch.device("cpu"))
    keys, values = pool.layer(3)
    keys.normal_()
    values.normal_()
    out = torch.empty(2, pool.block_bytes(3), dtype=torch.uint8)
    pool.read_blocks(3, [6, 1], out)
    expected = torch.stack([torch.cat((keys[block].flatten(), values[block].flatten())) for block in (6, 1)])
    assert torch.equal(out.view(torch.float32), expected)


def manager(num_blocks: int = NUM_BLOCKS) -> KvCacheManager:
    return KvCacheManager(GROUPS, num_blocks, SIZE)


def hashes_of(salt: str, token_ids: Sequence[int]) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, salt, token_ids, SIZE)
    return hashes


TOKENS = list(range(100, 120))  # five blocks; the window holds positions 15 to 20 of the token after them, so blocks 3 and 4


def test_an_inserted_prefix_is_found_by_its_salt_and_no_other() -> None:
    kv, written = manager(), []
    assert kv.insert_prefix("a", TOKENS, written.append) == 5 + 2
    assert [sorted(new) for new in written[0]] == [[0, 1, 2, 3, 4], [3, 4]]
    kv.check()
    assert (kv.num_cached, [a.num_held for a in kv.allocators]) == (7, [0, 0])
    assert kv.match_prefix(hashes_of("a", [*TOKENS, 1])) == 5
    assert kv.match_prefix(hashes_of("b", [*TOKENS, 1])) == 0
    # A shorter prefix needs block 2 of the window's group, which no file holds.
    assert kv.match_prefix(hashes_of("a", TOKENS[:12])) == 0
    assert kv.open(7, "a", hashes_of("a", TOKENS)) == 20
    assert [[block for block in table if block is not None] for table in kv.block_tables(7)] == [
        list(new.values()) for new in written[0]
    ]


def test_cached_blocks_are_not_written_again_even_with_holes() -> None:
    kv, written = manager(), []
    kv.insert_prefix("a", TOKENS, lambda new: None)
    hole = kv.allocators[0].find(hashes_of("a", TOKENS)[2])
    assert hole is not None
    kv.allocators[0].free_cached(hole)
    assert kv.insert_prefix("a", TOKENS, written.append) == 1
    assert [sorted(new) for new in written[0]] == [[2], []]
    assert kv.insert_prefix("a", TOKENS, written.append) == 0
    kv.check()


def test_a_write_that_fails_publishes_nothing() -> None:
    def fail(new: Sequence[Mapping[int, int]]) -> None:
        raise OSError

    kv = manager()
    with pytest.raises(OSError):
        kv.insert_prefix("a", TOKENS, fail)
    kv.check()
    assert (kv.num_cached, kv.match_prefix(hashes_of("a", TOKENS))) == (0, 0)
    assert all(allocator.num_available == NUM_BLOCKS for allocator in kv.allocators)


def test_too_few_blocks_change_nothing_and_are_counted() -> None:
    kv = manager(6)
    kv.open(1, "other", ())
    assert kv.reserve(1, 0, 2 * SIZE) is not None
    kv.insert_prefix("a", TOKENS[: 3 * SIZE], lambda new: None)  # three of the four blocks left; a prefix hit needs no more
    order = [list(allocator._cached) for allocator in kv.allocators]
    with pytest.raises(CapacityError, match=r"got 2 blocks of 4 tokens; allowed: up to 1\."):
        kv.insert_prefix("a", TOKENS, lambda new: None)
    assert [list(allocator._cached) for allocator in kv.allocators] == order
    kv.check()
    kv.close(1)
    assert kv.insert_prefix("a", TOKENS, lambda new: None) == 2 + 2
    kv.check()


def test_the_last_blocks_of_an_inserted_prefix_are_evicted_first() -> None:
    kv = manager(6)
    kv.insert_prefix("a", TOKENS, lambda new: None)
    kv.open(1, "b", ())
    assert kv.reserve(1, 0, 3 * SIZE) is not None  # one free block and two cached ones
    assert [kv.allocators[0].find(h) is not None for h in hashes_of("a", TOKENS)] == [True, True, True, False, False]


def test_removing_a_prefix_frees_what_no_sequence_holds() -> None:
    kv = manager()
    kv.insert_prefix("a", TOKENS, lambda new: None)
    kv.insert_prefix("b", TOKENS, lambda new: None)
    kv.open(1, "a", hashes_of("a", TOKENS[:8]))  # holds nothing: the window's group lacks its blocks
    kv.close(1)
    kv.open(1, "a", hashes_of("a", TOKENS))
    assert kv.remove_prefix("a", TOKENS) == 0
    kv.close(1)
    assert kv.remove_prefix("a", TOKENS[:12]) == 3  # its window's blocks are those of a longer prefix
    assert kv.remove_prefix("a", [*TOKENS, 1]) == 4
    assert (kv.match_prefix(hashes_of("a", TOKENS)), kv.match_prefix(hashes_of("b", TOKENS))) == (0, 5)
    kv.check()


@pytest.mark.parametrize("window", [None, 1, 2, 4, 5, 8, 9, 100])
def test_live_blocks_are_those_with_a_position_that_the_next_token_attends_to(window: int | None) -> None:
    for size, num_blocks in ((draw := random.Random(i)) and (draw.randint(1, 5), draw.randint(1, 9)) for i in range(40)):
        position = size * num_blocks
        seen = {p // size for p in range(position) if window is None or p > position - window}
        assert set(KvGroup((0,), 1, 4, window).live_blocks(num_blocks, size)) == seen
