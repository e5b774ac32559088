"""``PinTable``: prefixes whose KV blocks stay in the prefix cache until a time.

A pin holds one reference to each of its blocks, so that no allocation evicts them. A use extends the pin::

    pin ──► pinned ──► expired    its time is over
              │  ▲ ├──► evicted    a new pin needs its place or its share of the blocks
              └──┘ ├──► dropped    the only running request needs its blocks
             a use └──► removed    by hand, or its blocks left the prefix cache

It knows neither tokens nor sequences, and reads no clock: ``advance`` sets the time. Pins may overlap and then share blocks.
Where new pins need room, the owner that has most gives way first, so no tenant evicts the pins of another that has fewer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.kv.allocator import BlockAllocator
from hasten.kv.group import KvGroup

EVENTS = ("set", "refreshed", "hits", "expired", "evicted", "dropped", "removed", "refused")


@dataclass(slots=True, eq=False)
class Pin:
    block_hash: bytes  # of the prefix's last block, which depends on all tokens, on the tenant and on the exit layer
    num_tokens: int
    blocks: tuple[tuple[int, ...], ...]  # per group, those that the token after the prefix attends to
    seconds: float  # that the pin lasts after its last use
    pinned_until: float
    owner: str = ""  # the salt of its blocks; pins of different owners share none
    hits: int = 0

    @property
    def num_blocks(self) -> int:
        """The number of blocks in the group that holds most."""
        return max(map(len, self.blocks))


class PinTable:
    def __init__(
        self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, *, max_pins: int, max_pinned_share: float
    ) -> None:
        """``max_pinned_share``: of the ``num_blocks`` of each group. ``reset`` gives the table its allocators."""
        self._groups, self._block_size = tuple(groups), block_size
        self._max_pins, self._max_blocks = max_pins, int(max_pinned_share * num_blocks)  # per group
        self._pins: OrderedDict[bytes, Pin] = OrderedDict()  # by ``block_hash``, unused for longest first
        self.now, self._next_expiry = 0.0, math.inf  # no pin expires before ``_next_expiry``
        self.counts = dict.fromkeys(EVENTS, 0)  # since the start

    def reset(self, allocators: Sequence[BlockAllocator]) -> None:
        """Forget all pins; later ones hold blocks of ``allocators``."""
        self.counts["removed"] += len(self._pins)
        self._pins.clear()
        self._allocators = tuple(allocators)
        self._num_pins_of: tuple[dict[int, int], ...] = tuple({} for _ in allocators)  # per group: block -> its pins

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def num_blocks(self) -> int:
        """The number of distinct pinned blocks, in the group that has most."""
        return max(map(len, self._num_pins_of))

    def advance(self, now: float) -> None:
        """Set the time, and end the pins that have expired."""
        self.now = now
        if now >= self._next_expiry:
            for pin in [pin for pin in self._pins.values() if pin.pinned_until <= now]:
                self._end(pin, "expired")
            self._next_expiry = min((pin.pinned_until for pin in self._pins.values()), default=math.inf)

    def pin(self, hashes: Sequence[bytes], seconds: float, owner: str = "") -> bool:
        """Pin the prefix of the blocks ``hashes``; return False if it is not cached or has no room.

        A prefix has one pin, with the longest of its times. Pins of the owner that has most make room for a new one, those unused
        for longest first.
        """
        pin = self._pins.get(hashes[-1])
        if pin is not None:
            pin.seconds = max(pin.seconds, seconds)
            pin.pinned_until = self.now + pin.seconds
            self.counts["refreshed"] += 1
        else:
            blocks = self._find(hashes)
            if blocks is None or not self.may_pin(len(hashes)):
                self.refuse()
                return False
            pin = Pin(hashes[-1], len(hashes) * self._block_size, blocks, seconds, self.now + seconds, owner)
            self._hold(pin)
        self._next_expiry = min(self._next_expiry, pin.pinned_until)
        self._move_to_end(hashes)
        self._make_room(pin)
        return pin.block_hash in self._pins

    def may_pin(self, num_blocks: int) -> bool:
        """Whether a prefix of so many blocks is within the bounds, were it the only one."""
        size = self._block_size
        first = min(group.first_live_block((num_blocks - 1) * size, size) for group in self._groups)
        return self._max_pins > 0 and num_blocks - first <= self._max_blocks

    def refuse(self) -> None:
        """Count a pin that could not be set."""
        self.counts["refused"] += 1

    def use(self, hashes: Sequence[bytes]) -> int:
        """Count a hit of each pinned prefix of the blocks ``hashes``, and extend its pin.

        Return the tokens of the longest one.
        """
        pins = self._move_to_end(hashes)
        for pin in pins:
            pin.pinned_until = self.now + pin.seconds
            pin.hits += 1
            self.counts["hits"] += 1
        return max((pin.num_tokens for pin in pins), default=0)

    def get(self, block_hash: bytes) -> Pin | None:
        return self._pins.get(block_hash)

    def unpin(self, block_hash: bytes | None = None) -> int:
        """End the pin of this prefix, or all pins; return their number."""
        pins = [pin for pin in self._pins.values() if block_hash is None or pin.block_hash == block_hash]
        for pin in pins:
            self._end(pin, "removed")
        return len(pins)

    def unpin_blocks(self, groups: Sequence[Iterable[int | None]]) -> None:
        """End every pin of any of these blocks, given per group, because they leave the prefix cache."""
        if self._pins:
            own = [set(blocks) for blocks in groups]
            for pin in list(self._pins.values()):
                if not all(leaving.isdisjoint(blocks) for leaving, blocks in zip(own, pin.blocks, strict=True)):
                    self._end(pin, "removed")

    def drop_one(self) -> bool:
        """End the pin unused for longest of which only pins hold a block; return False if there is none."""
        group = min(range(len(self._groups)), key=lambda group: self._allocators[group].num_available)
        allocator, num_pins_of = self._allocators[group], self._num_pins_of[group]
        for pin in self._pins.values():
            if any(allocator.num_references(block) == num_pins_of[block] for block in pin.blocks[group]):
                self._end(pin, "dropped")
                return True
        return False

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return the pins at ``now`` as plain data, unused for longest first."""
        self.advance(now)
        return [self.describe_pin(pin) for pin in self._pins.values()]

    def describe_pin(self, pin: Pin) -> dict[str, Any]:
        """Return one pin as plain data; times in seconds."""
        return {
            "num_tokens": pin.num_tokens,
            "num_blocks": pin.num_blocks,
            "seconds": pin.seconds,
            "expires_in": pin.pinned_until - self.now,
            "hits": pin.hits,
        }

    def references(self, group: int) -> dict[int, int]:
        """Return the number of pins of each pinned block of a group."""
        return dict(self._num_pins_of[group])

    def check(self) -> None:
        """Assert that the table agrees with itself, and that each pinned prefix can be found."""
        for group, (allocator, num_pins_of) in enumerate(zip(self._allocators, self._num_pins_of, strict=True)):
            counts: dict[int, int] = {}
            for pin in self._pins.values():
                for block in pin.blocks[group]:
                    counts[block] = counts.get(block, 0) + 1
                    assert allocator.is_published(block), "a pinned block cannot be found"
            assert counts == num_pins_of, f"group {group}: pins and the blocks that they hold differ"
            assert len(counts) <= self._max_blocks, "pins exceed their share"
        assert len(self._pins) <= self._max_pins, "there are too many pins"
        assert all(pin.pinned_until >= self._next_expiry for pin in self._pins.values()), "a pin expires unnoticed"

    def _find(self, hashes: Sequence[bytes]) -> tuple[tuple[int, ...], ...] | None:
        """Return the blocks of each group that the token after the prefix attends to; None if one is missing."""
        found, size = [], self._block_size
        for group, allocator in zip(self._groups, self._allocators, strict=True):
            first = group.first_live_block(len(hashes) * size, size)
            blocks = [allocator.find(block_hash) for block_hash in hashes[first:]]
            if None in blocks:
                return None
            # A prompt that is equal to the prefix computes its last block again, so the window of that block matters too.
            earlier = hashes[group.first_live_block((len(hashes) - 1) * size, size) : first]
            blocks = [*map(allocator.find, earlier), *blocks]
            found.append(tuple(block for block in blocks if block is not None))
        return tuple(found)

    def _make_room(self, new: Pin) -> None:
        """Evict pins until the bounds hold.

        The new one alone is within them, but it goes as well if its owner had more than all others even so.
        """
        while len(self._pins) > self._max_pins:
            self._end(self._to_evict(new, len), "evicted")
        while self.num_blocks > self._max_blocks:
            self._end(self._to_evict(new, self._num_blocks_of), "evicted")

    def _num_blocks_of(self, pins: Sequence[Pin]) -> int:
        """Return the number of distinct blocks of these pins, in the group that has most."""
        return max(len({block for pin in pins for block in pin.blocks[group]}) for group in range(len(self._groups)))

    def _to_evict(self, new: Pin, size: Callable[[Sequence[Pin]], int]) -> Pin:
        """Return the pin unused for longest, of the owner whose pins have the largest ``size``."""
        pins_of: dict[str, list[Pin]] = {}
        for pin in self._pins.values():
            pins_of.setdefault(pin.owner, []).append(pin)
        largest = max(map(size, pins_of.values()))
        owners = [owner for owner, pins in pins_of.items() if size(pins) == largest]
        # Among equals the new pin's owner gives way, unless it has no other one.
        owners.sort(key=lambda owner: (pins_of[owner] == [new], owner != new.owner))
        pins = pins_of[owners[0]]
        return next((pin for pin in pins if pin is not new), new)

    def _move_to_end(self, hashes: Sequence[bytes]) -> list[Pin]:
        """Make the pins of these prefixes the last used ones, and return them.

        A prefix follows the longer ones, whose end gives blocks back while its own does not.
        """
        pins = [pin for block_hash in reversed(hashes) if (pin := self._pins.get(block_hash)) is not None]
        for pin in pins:
            self._pins.move_to_end(pin.block_hash)
        return pins

    def _hold(self, pin: Pin) -> None:
        self._pins[pin.block_hash] = pin
        for blocks, allocator, num_pins_of in zip(pin.blocks, self._allocators, self._num_pins_of, strict=True):
            for block in blocks:
                allocator.hold(block)
                num_pins_of[block] = num_pins_of.get(block, 0) + 1
        self.counts["set"] += 1

    def _end(self, pin: Pin, event: str) -> None:
        """Release the blocks of a pin; its last ones are evicted first."""
        del self._pins[pin.block_hash]
        for blocks, allocator, num_pins_of in zip(pin.blocks, self._allocators, self._num_pins_of, strict=True):
            for block in reversed(blocks):
                num_pins_of[block] -= 1
                if not num_pins_of[block]:
                    del num_pins_of[block]
                allocator.release(block)
        self.counts[event] += 1
