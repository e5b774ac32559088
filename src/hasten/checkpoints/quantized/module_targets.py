"""``TargetMatcher``: which entry of a list of targets names a module.

A target is a name, a pattern ("re:.*mlp.*"), or a class of modules.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import regex

from hasten.core.errors import CheckpointError, show

LINEAR = "Linear"  # the only class of modules that are stored quantised
MAX_PATTERN = 1_000  # characters
MAX_SECONDS = 2.0  # for the patterns of a checkpoint: a short pattern can take hours


@dataclass(slots=True)
class TargetMatcher:
    """Targets in the order in which compressed-tensors tries them: names, patterns by alphabet, the class.

    Raises ``CheckpointError`` for a pattern that is not valid or takes too long.
    """

    targets: Iterable[str]
    _names: set[str] = field(init=False)
    _patterns: list[tuple[str, regex.Pattern[str]]] = field(init=False)
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._names = {target for target in self.targets if not target.startswith("re:")}
        self._patterns = []
        for target in sorted({*self.targets} - self._names):
            self._refuse_late(target)
            self._patterns.append((target, _compile(target)))

    def find(self, module: str) -> str | None:
        """Return the first target that names ``module``; None if there is none."""
        if module in self._names:
            return module
        for target, pattern in self._patterns:
            remaining = self._refuse_late(target)
            try:
                if pattern.match(module, timeout=remaining):
                    return target
            except (TimeoutError, MemoryError):
                raise _too_slow(target) from None
        return LINEAR if LINEAR in self._names else None

    def _refuse_late(self, target: str) -> float:
        """Return the seconds that are left; many patterns that are fast take long together."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise _too_slow(target)
        return remaining


def _compile(target: str) -> regex.Pattern[str]:
    pattern = target.removeprefix("re:")
    if len(pattern) > MAX_PATTERN:
        raise _invalid(target, f"patterns of up to {MAX_PATTERN:,} characters")
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)  # ``regex`` knows more constructs, and a time limit
            return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError):
        raise _invalid(target, "a regular expression of Python") from None


def _too_slow(target: str) -> CheckpointError:
    return _invalid(target, f"patterns that together take less than {MAX_SECONDS:g} s")


def _invalid(target: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        "a target in the quantization_config of config.json is not a valid pattern",
        got=show(target),
        allowed=allowed,
        remedy="Download the checkpoint again",
    )
