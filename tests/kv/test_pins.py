"""Pins keep prefixes in the cache until their time is over, within their bounds, and give up their blocks in the right order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.kv.pins import EVENTS
from hasten.kv.prefix_hash import cache_salt, extend_hashes

SIZE = 4
FULL, WINDOWED = KvGroup((0,), 1, 4), KvGroup((1,), 1, 4, window=7)
RED = cache_salt("red", None)


def manager(
    num_blocks: int = 32, *, groups: Sequence[KvGroup] = (FULL,), max_pins: int = 8, share: float = 1.0, keep_cached: bool = True
) -> KvCacheManager:
    return KvCacheManager(groups, num_blocks, SIZE, max_pins=max_pins, max_pinned_share=share, keep_cached=keep_cached)


def hashes_of(tokens: Sequence[int], salt: str = RED) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, salt, tokens, SIZE)
    return hashes


def compute(kv: KvCacheManager, tokens: Sequence[int], salt: str = RED) -> None:
    """Compute a prompt and close its sequence, so that its blocks are cached."""
    start = kv.open(0, salt, kv.block_hashes(salt, tokens))
    assert kv.reserve(0, start, len(tokens)) is not None
    kv.commit(0, tokens, len(tokens))
    kv.close(0)
    kv.check()


def pin(kv: KvCacheManager, tokens: Sequence[int], seconds: float, salt: str = RED) -> bool:
    return kv.pins.pin(hashes_of(tokens, salt), seconds, salt)


def is_pinned(kv: KvCacheManager, tokens: Sequence[int], salt: str = RED) -> bool:
    kv.check()
    return kv.pins.get(hashes_of(tokens, salt)[-1]) is not None


def is_cached(kv: KvCacheManager, tokens: Sequence[int], salt: str = RED) -> bool:
    hashes = hashes_of(tokens, salt)
    return kv.match_prefix(hashes) == len(hashes)


def flood(kv: KvCacheManager) -> None:
    """Allocate every available block and release it again, so that no cached block is left."""
    for allocator in kv.allocators:
        for block in [allocator.allocate() for _ in range(allocator.num_available)]:
            allocator.release(block)


def chain(first: int, num_blocks: int) -> list[int]:
    return [first] * (num_blocks * SIZE)


def test_a_pinned_prefix_outlives_a_flood_until_its_time_is_over() -> None:
    kv = manager()
    compute(kv, chain(1, 3))
    compute(kv, chain(2, 3))
    assert pin(kv, chain(1, 3), 5.0) and kv.allocators[0].num_available == 29
    flood(kv)
    assert is_cached(kv, chain(1, 3)) and not is_cached(kv, chain(2, 3))
    kv.pins.advance(4.9)
    assert is_pinned(kv, chain(1, 3))
    kv.pins.advance(5.0)
    assert not is_pinned(kv, chain(1, 3)) and is_cached(kv, chain(1, 3)), "an expired prefix is an ordinary cached one"
    flood(kv)
    assert not is_cached(kv, chain(1, 3)) and kv.pins.counts["expired"] == 1


def test_what_is_not_cached_is_not_pinned() -> None:
    kv = manager()
    compute(kv, chain(1, 2))
    assert not pin(kv, chain(1, 3), 5.0) and kv.pins.counts["refused"] == 1 and len(kv.pins) == 0
    without_cache = manager(keep_cached=False)
    without_cache.open(7, RED, ())
    without_cache.reserve(7, 0, 8)
    without_cache.commit(7, chain(1, 2), 8)
    assert not pin(without_cache, chain(1, 2), 5.0)


def test_hits_and_new_pins_of_the_same_prefix_extend_it_and_the_longer_time_wins() -> None:
    kv = manager()
    compute(kv, chain(1, 2))
    assert pin(kv, chain(1, 2), 5.0)
    kv.pins.advance(3.0)
    kv.use_pins(RED, kv.block_hashes(RED, [*chain(1, 2), 7]), [*chain(1, 2), 7])
    assert kv.pins.describe(4.0) == [{"num_tokens": 8, "num_blocks": 2, "seconds": 5.0, "expires_in": 4.0, "hits": 1}]
    assert pin(kv, chain(1, 2), 60.0)
    kv.pins.advance(30.0)
    assert pin(kv, chain(1, 2), 1.0)
    assert kv.pins.describe(40.0)[0]["expires_in"] == 50.0
    assert kv.pins.describe(89.0) and not kv.pins.describe(90.0)
    expected = {"set": 1, "refreshed": 2, "hits": 1, "expired": 1}
    assert kv.pins.counts == {event: expected.get(event, 0) for event in EVENTS}


def test_a_prompt_that_is_equal_to_the_pinned_prefix_is_a_hit_although_it_computes_the_last_block_again() -> None:
    kv = manager(groups=(FULL, WINDOWED))
    compute(kv, chain(1, 4))
    assert pin(kv, chain(1, 4), 5.0)
    flood(kv)
    hashes = kv.block_hashes(RED, chain(1, 4))
    kv.use_pins(RED, hashes, chain(1, 4))
    assert len(hashes) == kv.match_prefix(hashes) == 3 and kv.pins.counts["hits"] == 1
    other = [*chain(1, 3), 1, 1, 1, 2]
    kv.use_pins(RED, kv.block_hashes(RED, other), other)
    assert kv.pins.counts["hits"] == 1, "the last block differs"


def test_a_windowed_group_holds_the_blocks_that_the_next_token_attends_to() -> None:
    kv = manager(groups=(FULL, WINDOWED))
    compute(kv, chain(1, 6))
    assert pin(kv, chain(1, 6), 5.0)
    # The token at position 24 attends to positions 18 to 24: blocks 4 and 5. The token at 20, for an equal prompt, to block 3 too.
    assert [allocator.num_held for allocator in kv.allocators] == [6, 3]
    assert kv.pins.describe(0.0)[0]["num_blocks"] == 6
    flood(kv)
    assert is_cached(kv, chain(1, 6)) and not is_cached(kv, chain(1, 3))


def test_tenants_and_exit_layers_have_their_own_pins() -> None:
    kv = manager()
    salts = [cache_salt("red", None), cache_salt("blue", None), cache_salt("red", 3)]
    for salt in salts:
        compute(kv, chain(1, 2), salt)
    assert pin(kv, chain(1, 2), 5.0, salts[1])
    assert [is_pinned(kv, chain(1, 2), salt) for salt in salts] == [False, True, False]
    flood(kv)
    assert [is_cached(kv, chain(1, 2), salt) for salt in salts] == [False, True, False]
    kv.use_pins(salts[0], hashes_of(chain(1, 2), salts[0]), chain(1, 2))
    assert kv.pins.counts["hits"] == 0 and kv.allocators[0].num_held == 2


def test_the_pin_unused_for_longest_gives_its_place_to_a_new_one() -> None:
    kv = manager(max_pins=2)
    for first in (1, 2, 3):
        compute(kv, chain(first, 2))
    assert pin(kv, chain(1, 2), 9.0) and pin(kv, chain(2, 2), 9.0)
    kv.pins.use(hashes_of(chain(1, 2)))
    assert pin(kv, chain(3, 2), 9.0)
    assert [is_pinned(kv, chain(first, 2)) for first in (1, 2, 3)] == [True, False, True] and kv.pins.counts["evicted"] == 1


def test_the_share_counts_distinct_blocks_and_refuses_what_is_larger_than_the_share() -> None:
    kv = manager(share=0.25)  # 8 of 32 blocks
    compute(kv, chain(1, 9))
    compute(kv, chain(2, 3))
    assert not pin(kv, chain(1, 9), 9.0) and kv.pins.counts["refused"] == 1
    for num_blocks in (2, 4, 5):
        assert pin(kv, chain(1, num_blocks), 9.0)
    assert kv.pins.num_blocks == 5 and kv.allocators[0].num_held == 5, "overlapping pins share blocks"
    assert pin(kv, chain(2, 3), 9.0) and kv.pins.counts["evicted"] == 0
    assert pin(kv, chain(1, 8), 9.0), "its blocks are the entire share"
    assert not is_pinned(kv, chain(2, 3)) and [is_pinned(kv, chain(1, n)) for n in (2, 4, 5, 8)] == [True] * 4
    assert not manager(max_pins=0).pins.may_pin(1) and not manager(share=0.0).pins.may_pin(1)


def test_a_pin_is_dropped_only_if_that_frees_a_block() -> None:
    kv = manager(16)
    compute(kv, chain(1, 6))
    compute(kv, chain(2, 2))
    for tokens in (chain(1, 2), chain(2, 2), chain(1, 4), chain(1, 6)):
        assert pin(kv, tokens, 9.0)
    kv.open(5, RED, hashes_of(chain(2, 2)))  # a running request holds these blocks
    # The longest prefix holds the others' blocks too, so only its own end frees blocks.
    for left in ([2, 4], [2], []):
        before = kv.allocators[0].num_available
        assert kv.pins.drop_one() and kv.allocators[0].num_available == before + 2
        assert [n for n in (2, 4, 6) if is_pinned(kv, chain(1, n))] == left
    assert not kv.pins.drop_one() and is_pinned(kv, chain(2, 2)), "it frees no block"
    kv.close(5)
    assert kv.pins.drop_one() and not kv.pins.drop_one() and kv.pins.counts["dropped"] == 4
    kv.check()


def test_pins_that_free_blocks_only_together_are_all_dropped() -> None:
    """Another request has computed the first blocks itself: it holds the last block of the pinned prefix, and not the first."""
    kv = manager(16)
    for sequence_id, num_blocks in ((1, 2), (2, 3)):
        kv.open(sequence_id, RED, ())
        kv.reserve(sequence_id, 0, num_blocks * SIZE)
    for sequence_id, num_blocks in ((1, 2), (2, 3)):
        kv.commit(sequence_id, chain(1, num_blocks), num_blocks * SIZE)
    kv.close(1)
    assert pin(kv, chain(1, 2), 9.0) and pin(kv, chain(1, 3), 9.0)
    before = kv.allocators[0].num_available
    assert kv.pins.drop_one() and kv.pins.drop_one() and not kv.pins.drop_one()
    assert kv.allocators[0].num_available == before + 2
    kv.check()


def test_blocks_that_leave_the_prefix_cache_take_their_pins_along() -> None:
    kv = manager()
    compute(kv, chain(1, 3))
    compute(kv, chain(2, 3))
    assert pin(kv, chain(1, 3), 9.0) and pin(kv, chain(1, 1), 9.0) and pin(kv, chain(2, 3), 9.0)
    kv.open(5, RED, hashes_of(chain(1, 2)))
    kv.discard(5)  # as after logits that are not finite
    assert not is_pinned(kv, chain(1, 3)) and not is_cached(kv, chain(1, 1)) and is_pinned(kv, chain(2, 3))
    assert kv.pins.counts["removed"] == 2
    kv.clear_cached()
    assert not is_pinned(kv, chain(2, 3)) and kv.allocators[0].num_held == 0 and not is_cached(kv, chain(2, 3))
    compute(kv, chain(1, 3))
    assert pin(kv, chain(1, 3), 9.0)
    kv.reset()
    assert len(kv.pins) == 0 and kv.allocators[0].num_held == 0 and kv.pins.counts["removed"] == 4
    compute(kv, chain(1, 3))
    assert pin(kv, chain(1, 3), 9.0) and is_pinned(kv, chain(1, 3)), "pins go on after a reset"


def test_unpin_ends_one_pin_or_all() -> None:
    kv = manager()
    for first in (1, 2, 3):
        compute(kv, chain(first, 2))
        assert pin(kv, chain(first, 2), 9.0)
    block_hash = kv.prefix_hash(RED, [*chain(2, 2), 5])
    assert kv.pins.unpin(block_hash) == 1 and kv.pins.unpin(block_hash) == 0 and not is_pinned(kv, chain(2, 2))
    assert kv.pins.unpin() == 2 and kv.allocators[0].num_held == 0 and kv.prefix_hash(RED, [1, 2, 3]) is None


def test_time_without_pins_or_before_the_next_expiry_looks_at_no_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = manager()
    compute(kv, chain(1, 2))
    assert pin(kv, chain(1, 2), 9.0)

    class Untouchable(dict[bytes, object]):
        def values(self) -> object:  # type: ignore[override]
            raise AssertionError("a pin was looked at")

    pins = kv.pins._pins
    monkeypatch.setattr(kv.pins, "_pins", Untouchable())
    kv.pins.advance(8.9)
    with pytest.raises(AssertionError, match="looked at"):
        kv.pins.advance(9.0)
    monkeypatch.setattr(kv.pins, "_pins", pins)
    assert kv.pins.describe(9.0) == []


def test_a_tenant_that_pins_much_evicts_its_own_pins_and_not_those_of_others() -> None:
    kv = manager(64, max_pins=4)
    blue, green = cache_salt("blue", None), cache_salt("green", None)
    for first in (1, 2):
        compute(kv, chain(first, 2), blue)
        assert pin(kv, chain(first, 2), 9.0, blue)
    for first in range(20):
        compute(kv, chain(first, 1), RED)
        assert pin(kv, chain(first, 1), 9.0, RED)
    assert [is_pinned(kv, chain(first, 2), blue) for first in (1, 2)] == [True, True]
    assert [first for first in range(20) if is_pinned(kv, chain(first, 1), RED)] == [18, 19]
    compute(kv, chain(7, 1), green)
    assert pin(kv, chain(7, 1), 9.0, green), "a newcomer gets its place from those that have most"
    assert is_pinned(kv, chain(7, 1), green) and not is_pinned(kv, chain(1, 2), blue) and is_pinned(kv, chain(2, 2), blue)


def test_a_pin_larger_than_what_others_leave_is_refused_and_evicts_none_of_theirs() -> None:
    kv = manager(64, share=0.5)
    blue = cache_salt("blue", None)
    compute(kv, chain(1, 3), blue)
    assert pin(kv, chain(1, 3), 9.0, blue)
    compute(kv, chain(2, 30))
    assert not pin(kv, chain(2, 30), 9.0) and is_pinned(kv, chain(1, 3), blue) and not is_pinned(kv, chain(2, 30))
    assert (kv.pins.counts["set"], kv.pins.counts["evicted"]) == (2, 1)
    assert pin(kv, chain(2, 29), 9.0)


def test_a_use_returns_the_tokens_of_the_longest_pinned_prefix() -> None:
    kv = manager()
    compute(kv, chain(1, 4))
    assert pin(kv, chain(1, 1), 9.0) and pin(kv, chain(1, 3), 9.0)
    prompt = [*chain(1, 3), 7]
    assert kv.use_pins(RED, kv.block_hashes(RED, prompt), prompt) == 3 * SIZE
    assert kv.use_pins(RED, kv.block_hashes(RED, chain(1, 2)), chain(1, 2)) == SIZE
    assert kv.use_pins("other", kv.block_hashes("other", prompt), prompt) == 0


class ReferencePins:
    """The same rules over sets of (chain, length), with a list in order of use. ``owner``: of a chain."""

    def __init__(self, max_pins: int, max_blocks: int, owner: Callable[[int], int]) -> None:
        self.max_pins, self.max_blocks, self.now, self.owner = max_pins, max_blocks, 0.0, owner
        self.order: list[tuple[int, int]] = []  # (chain, blocks), unused for longest first
        self.until: dict[tuple[int, int], float] = {}
        self.seconds: dict[tuple[int, int], float] = {}

    def use(self, first: int, length: int, *, extend: bool) -> None:
        for name in sorted((name for name in self.order if name[0] == first and name[1] <= length), key=lambda name: -name[1]):
            self.order.remove(name)
            self.order.append(name)
            if extend:
                self.until[name] = self.now + self.seconds[name]

    def pin(self, first: int, length: int, seconds: float) -> None:
        name = (first, length)
        if name not in self.order:
            if length > self.max_blocks:
                return
            self.order.append(name)
            self.seconds[name] = 0.0
        self.seconds[name] = max(self.seconds[name], seconds)
        self.until[name] = self.now + self.seconds[name]
        self.use(first, length, extend=False)
        while len(self.order) > self.max_pins:
            self.evict(name, Counter(self.owner(f) for f, n in self.order))
        while len(blocks := {(f, i) for f, n in self.order for i in range(n)}) > self.max_blocks:
            self.evict(name, Counter(self.owner(f) for f, i in blocks))

    def evict(self, new: tuple[int, int], sizes: Counter[int]) -> None:
        """Remove a pin of an owner with the largest size: of the new one's owner, then the one unused for longest."""
        others = [pin for pin in self.order if pin != new and sizes[self.owner(pin[0])] == max(sizes.values())]
        own = [pin for pin in others if self.owner(pin[0]) == self.owner(new[0])]
        self.order.remove((own or others or [new])[0])

    def advance(self, now: float) -> None:
        self.now = now
        self.order = [name for name in self.order if self.until[name] > now]


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_agree_with_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    max_pins, max_blocks = draw.choice((2, 4, 9)), draw.choice((6, 12, 30))
    kv, num_owners = manager(64, max_pins=max_pins, share=(max_blocks + 0.5) / 64), draw.choice((1, 2, 4))
    reference = ReferencePins(max_pins, max_blocks, lambda first: first % num_owners)
    kv.pins.advance(0.0)
    for _ in range(500):
        first, length = draw.randrange(1, 5), draw.randrange(1, 9)
        salt, action = f"tenant {first % num_owners}", draw.random()
        if action < 0.4:
            compute(kv, [*chain(first, length), 0], salt)
            seconds = draw.choice((2.0, 10.0, 50.0))
            kv.pins.pin(hashes_of(chain(first, length), salt), seconds, salt)
            reference.pin(first, length, seconds)
        elif action < 0.7:
            kv.pins.use(hashes_of(chain(first, length), salt))
            reference.use(first, length, extend=True)
        elif action < 0.95:
            reference.advance(reference.now + draw.choice((0.5, 3.0)))
            kv.pins.advance(reference.now)
        else:
            flood(kv)
        kv.check()
        actual = [(pin["num_blocks"], pin["expires_in"]) for pin in kv.pins.describe(reference.now)]
        assert actual == [(length, reference.until[first, length] - reference.now) for first, length in reference.order]
        assert all(is_cached(kv, chain(*name), f"tenant {name[0] % num_owners}") for name in reference.order)
    assert kv.pins.counts["expired"] and kv.pins.counts["hits"] and kv.pins.counts["refreshed"]
