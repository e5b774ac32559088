"""``ConfigView``: typed reading of a checkpoint's ``config.json``, with every fault reported at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from hasten.core.errors import UnsupportedModel

T = TypeVar("T")


class ConfigView:
    """Faults gather in the view while it is read; ``check`` raises them. A value read from a faulty key is a placeholder."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._faults: list[str] = []

    def integer(self, name: str, default: int, *, low: int = 1) -> int:
        """A missing or null key is ``default``."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or value < low:
            self.refuse(name, f"a whole number from {low}")
            return low
        return value

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """A missing key is ``default``, a null one None."""
        value = self.values.get(name, default)
        return None if value is None else self.integer(name, value)

    def number(self, name: str, default: float) -> float:
        """Above 0, finite."""
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            self.refuse(name, "a number above 0")
            return 1.0
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
            return default
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, T]) -> T:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, " or ".join(choices))
            return choices[default]
        return choices[value]

    def refuse(self, name: str, allowed: str) -> None:
        """Notes that the value of this key cannot be used."""
        self._faults.append(f"{name}={self.values.get(name)!r} (allowed: {allowed})")

    def require_off(self, names: Iterable[str]) -> None:
        """Options that would change the computation and that hasten does not compute."""
        for name in names:
            if self.values.get(name):
                self.refuse(name, "off")

    def check(self) -> None:
        """Raises ``UnsupportedModel`` with every fault so far."""
        if self._faults:
            raise UnsupportedModel(
                f"the configuration of this {self.values.get('model_type')} model has values that hasten does not decode: "
                + "; ".join(self._faults),
                remedy="Use another checkpoint, or correct config.json if it is wrong",
            )
