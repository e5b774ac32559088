"""``ConfigView``: read a checkpoint's ``config.json`` with types, and report all faults at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from hasten.core.errors import UnsupportedModel
from hasten.layers.spec import Activation

T = TypeVar("T")

# The names that configurations give to GELU.
GELU: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}


class ConfigView:
    """Reading a faulty key records the fault and returns a placeholder; ``check`` raises all faults."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._faults: list[str] = []

    def integer(self, name: str, default: int, *, low: int = 1) -> int:
        """Return the value, at least ``low``; ``default`` if the key is missing or null."""
        value = self._get(name, default)
        if type(value) is not int or value < low:
            self.refuse(name, f"a whole number from {low}")
            return low
        return value

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """Return the value; ``default`` if the key is missing and None if it is null."""
        value = self.values.get(name, default)
        return None if value is None else self.integer(name, value)

    def number(self, name: str, default: float) -> float:
        """Return the value, finite and above 0; ``default`` if the key is missing or null."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            self.refuse(name, "a number above 0")
            return 1.0
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
            return default
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, T]) -> T:
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, " or ".join(choices))
            return choices[default]
        return choices[value]

    def refuse(self, name: str, allowed: str) -> None:
        """Record that the value of this key is not supported."""
        self._faults.append(f"{name}={self.values.get(name)!r} (allowed: {allowed})")

    def require_off(self, names: Iterable[str]) -> None:
        """Refuse options that would change the computation and that hasten does not implement."""
        for name in names:
            if self.values.get(name):
                self.refuse(name, "off")

    def check(self) -> None:
        """Raise ``UnsupportedModel`` with all faults so far, if there are any."""
        if self._faults:
            raise UnsupportedModel(
                f"the configuration of this {self.values.get('model_type')} model has values that hasten does not support: "
                + "; ".join(self._faults),
                remedy="Use another checkpoint, or correct config.json if it is wrong",
            )

    def _get(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        return default if value is None else value
