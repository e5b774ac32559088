"""``Report``: the cases of one fuzz run, their time and memory, and the faults that they found."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MAX_CASE_SECONDS = 5.0  # of a case, in CPU time: the machine may be busy
HANG_SECONDS = 120  # until a case that hangs ends the process, with the stack of every thread
PROGRESS_SECONDS = 5.0
WARM_UP = 0.3  # share of the cases after which the memory may no longer grow


class Report:
    """``faults`` is empty if all is well. ``case`` is what a fault is attributed to: set it as soon as it is known."""

    def __init__(self, kind: str, seed: int, *, only: int | None = None, verbose: bool = False) -> None:
        self.kind, self.seed, self._only, self._verbose = kind, seed, only, verbose
        self.faults: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.case, self._index = "", 0

    def each(self, rng: random.Random, cases: int, *, max_growth: int = 64 << 20) -> Iterator[random.Random]:
        """Yield the generator of each case. A case that is slow is a fault, and so is memory that grows by ``max_growth`` bytes."""
        begin, shown, warm = time.monotonic(), time.monotonic(), 0
        for self._index in range(cases):
            case_rng = random.Random(rng.getrandbits(64))
            if self._only is not None and self._index != self._only:
                continue
            self.case, case_begin = "", time.process_time()
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
            yield case_rng
            faulthandler.cancel_dump_traceback_later()
            now, seconds = time.monotonic(), time.process_time() - case_begin
            if seconds > MAX_CASE_SECONDS:
                self.fail(f"it took {seconds:.1f} s")
            if self._index == int(cases * WARM_UP):
                warm = resident_bytes()
            if self._verbose and now - shown > PROGRESS_SECONDS:
                shown, left = now, (now - begin) / (self._index + 1) * (cases - self._index - 1)
                print(f"{self.kind}: {self._index + 1} of {cases}, {dict(self.outcomes)}, {left:.0f} s left", flush=True)
        growth = resident_bytes() - warm if warm else 0
        if growth > max_growth:
            self.case = "all cases"
            self.fail(f"the memory grew by {growth >> 20} MiB")

    def fail(self, fault: str) -> None:
        """Record a fault of this case."""
        command = f"python -m tests.fuzz --kind {self.kind} --seed {self.seed} --only {self._index}"
        self.faults.append(f"{self.case}: {fault} ({command})")
        if self._verbose:
            print(f"FAULT {self.faults[-1]}", flush=True)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
