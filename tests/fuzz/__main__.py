"""Run fuzz tests: ``python -m tests.fuzz [--kind KIND] [--seed N] [--cases M] [--only INDEX]``.

It prints the seed, the progress with the time left, and every fault with the command that repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time

from tests.fuzz.registry import KINDS, find
from tests.fuzz.report import Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--kind", choices=KINDS, help="all kinds if left out")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--cases", type=int, help="the kind's own number if left out")
    parser.add_argument("--only", type=int, help="the index of the only case to run")
    options = parser.parse_args()
    faulthandler.enable()
    faults: list[str] = []
    for name in [options.kind] if options.kind else KINDS:
        kind, begin = KINDS[name], time.monotonic()
        cases = options.cases or max(kind.cases, (options.only or 0) + 1)
        print(f"{name}: seed {options.seed}, {cases:,} {kind.unit}", flush=True)
        report = Report(name, options.seed, only=options.only, verbose=True)
        find(name)(random.Random(options.seed), cases, report)
        print(f"{name}: {len(report.faults)} faults, {dict(report.outcomes)}, {time.monotonic() - begin:.0f} s", flush=True)
        faults += report.faults
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
