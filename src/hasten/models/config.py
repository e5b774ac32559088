"""``ConfigView``: read a checkpoint's ``config.json`` with types, and report all faults at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from hasten.core.errors import UnsupportedModel, show
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


# Sums of three sizes are below 2**31, and the bytes of their products below 2**63. The meta device has no larger tensors.
MAX_SIZE = 2**29 - 1
MAX_LAYERS = 10_000
CONFIG_FILE = "config.json"
MIN_NUMBER, MAX_NUMBER = 1.2e-38, 3.4e38  # of float32, in which the kernels compute


class ConfigView:
    """Reading a faulty key records the fault and returns a placeholder; ``check`` raises all faults.

    ``max_layers`` bounds the number of layers, for each of which objects are made. Where the weights are known, it is the number of
    their tensors. ``source`` is the name of the configuration in messages.
    """

    def __init__(self, values: Mapping[str, Any], max_layers: int = MAX_LAYERS, source: str = CONFIG_FILE) -> None:
        self.values, self._max_layers, self.source = values, max_layers, source
        self._faults: list[str] = []

    def integer(self, name: str, default: int, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """Return the value, from ``low`` to ``high``; ``default`` if the key is missing or null."""
        value = self._get(name, default)
        if type(value) is not int or not low <= value <= high:
            self.refuse(name, f"a whole number from {low} to {high}")
            return low
        return value

    def num_layers(self, name: str, default: int) -> int:
        """Return the number of layers, at most the number of tensors in the weights."""
        value = self._get(name, default)
        if type(value) is int and value > self._max_layers:
            self.refuse(name, f"up to {self._max_layers}, the number of tensors in the weights")
            return 1
        return self.integer(name, default)

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """Return the value; ``default`` if the key is missing and None if it is null."""
        value = self.values.get(name, default)
        return None if value is None else self.integer(name, value)

    def number(self, name: str, default: float, *, above: float = 0.0) -> float:
        """Return the value, above ``above`` and within float32; ``default`` if the key is missing or null."""
        value = self._get(name, default)
        # Comparisons take integers that are too large for a float, and are false for NaN.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not max(above, MIN_NUMBER) < value <= MAX_NUMBER:
            self.refuse(name, f"a number above {above:g}, within float32")
            return default
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
        self._faults.append(f"{name}={show(self.values.get(name))} (allowed: {allowed})")

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
                remedy=f"Use another checkpoint, or correct {self.source} if it is wrong",
            )

    def _get(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        return default if value is None else value
