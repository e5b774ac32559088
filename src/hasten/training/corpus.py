"""``Corpus``: documents as two streams of tokens, one to train on and one held out, and the batches that are cut from them.

It knows token ids only. Which documents are held out depends on their content; which window is read at a step, on the seed and the
step: a run that is interrupted goes on with the very batches that it would have read.

Shape suffixes: N tokens of a stream · B windows · W tokens of a window.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.errors import InvalidOption

PLACES = 256  # that held-out text comes from at least, if it has as many windows
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Batch:
    ids_BW: Tensor  # int64
    seed: int  # of whatever is drawn at this step: the same when the step is repeated

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, slots=True)
class Corpus:
    train_N: Tensor  # int32
    held_out_N: Tensor  # int32

    @classmethod
    def split(cls, documents: Sequence[Sequence[int]], window: int, share: float, separator: int | None) -> Corpus:
        """Holds out whole documents, those of the smallest hashes, until they are ``share`` of all tokens.

        A document that would be a large part of that is cut into windows first: passages of one long text are not alike, and few of
        them say little of the rest. ``separator`` follows each document, if given. Raises ``InvalidOption`` if there would be no
        window to train on, or less than two held out.
        """
        end = [] if separator is None else [separator]
        parts = [array("i", [*document, *end]) for document in documents if len(document)]
        total = sum(map(len, parts))
        wanted = max(2 * window, int(total * share))
        sections = sorted(_sections(parts, max(window, wanted // PLACES), window))
        held_out, train = array("i"), array("i")
        order: list[tuple[int, array[int]]] = []
        last = b""
        for key, place, section in sections:
            if len(held_out) < wanted or key == last:
                held_out.extend(section)
                last = key
            else:
                order.append((place, section))
        for _, section in sorted(order, key=lambda item: item[0]):
            train.extend(section)
        if len(train) < window or len(held_out) < 2 * window:
            raise InvalidOption(
                "the data is too short: a window to train on and two held out have to come out of it",
                got=f"{total:,} tokens in {len(parts)} documents, {len({key for key, _, _ in sections})} different parts",
                allowed=f"at least {3 * window:,} tokens for windows of {window}",
                remedy="Give more text, or smaller windows with --seq-len",
            )
        return cls(_stream(train), _stream(held_out))

    def batch(self, step: int, size: int, window: int, seed: int) -> Batch:
        """What is read at ``step``: every epoch cuts the text at other places and reads its windows in another order."""
        per_epoch = max(1, (len(self.train_N) - window) // window)
        rows = range(step * size, (step + 1) * size)
        starts: list[int] = []
        for epoch in range(rows[0] // per_epoch, rows[-1] // per_epoch + 1):
            generator = torch.Generator().manual_seed(_mixed(seed, "epoch", epoch))
            shift = int(torch.randint(min(window, len(self.train_N) - window) + 1, (1,), generator=generator))
            order = torch.randperm(per_epoch, generator=generator)
            begin, end = max(rows[0], epoch * per_epoch), min(rows[-1] + 1, (epoch + 1) * per_epoch)
            starts += [shift + window * int(order[row % per_epoch]) for row in range(begin, end)]
        ids_BW = torch.stack([self.train_N[start : start + window] for start in starts]).long()
        return Batch(ids_BW, _mixed(seed, "step", step))

    def held_out(self, size: int, window: int, limit: int) -> Iterator[Batch]:
        """At most ``limit`` windows, spread evenly over the held-out text; the same at every call.

        They choose weights, so half of the windows is never among them.
        """
        places = self._spread(window)
        chosen = sorted(places[: len(places) - len(places) // 2][:limit])
        windows = [self.held_out_N[index * window : (index + 1) * window] for index in chosen]
        for first in range(0, len(windows), size):
            yield Batch(torch.stack(windows[first : first + size]).long(), _mixed(0, "held out", first))

    def unread(self, window: int, count: int, seed: int) -> Tensor:
        """``count`` windows that ``held_out`` never reads, in random order; fewer where there are no more. [B, W], int64"""
        places = self._spread(window)
        chosen = places[::-1][: min(count, len(places) // 2)]
        generator = torch.Generator().manual_seed(_mixed(seed, "unread", 0))
        order = torch.randperm(len(chosen), generator=generator).tolist()
        return torch.stack([self.held_out_N[chosen[i] * window : (chosen[i] + 1) * window] for i in order]).long()

    def _spread(self, window: int) -> list[int]:
        """Places of the windows of the held-out text; however many one takes from the start, they are spread evenly."""
        return sorted(range(len(self.held_out_N) // window), key=lambda index: index * _GOLDEN % 1)


def _sections(parts: Sequence[array[int]], longest: int, window: int) -> Iterator[tuple[bytes, int, array[int]]]:
    """(hash, place, tokens) of documents up to the longest, and of the windows of longer ones, the last with what is left over.

    Equal documents have equal hashes, so that no copy is trained on while the other is held out.
    """
    place = 0
    for part in parts:
        digest = hashlib.sha256(part.tobytes()).digest()
        count = 1 if len(part) <= longest else len(part) // window
        starts = [number * window for number in range(count)]
        for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
            key = digest if count == 1 else hashlib.sha256(digest + start.to_bytes(8, "little")).digest()
            yield key, place, part[start:end]
            place += 1


def _stream(tokens: array[int]) -> Tensor:
    return torch.frombuffer(tokens, dtype=torch.int32).clone()


def _mixed(seed: int, use: str, number: int) -> int:
    """63 bits out of a seed, apart for every use and number."""
    digest = hashlib.sha256(f"{seed}/{use}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
