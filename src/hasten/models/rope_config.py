"""Read rotary settings from a configuration.

They are in the ``rope_parameters`` table, or in the older ``rope_theta`` and ``rope_scaling``.
"""

from __future__ import annotations

from collections.abc import Mapping

from hasten.layers.rotary import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    RotaryScaling,
    RotarySpec,
    YarnScaling,
    yarn_attention_factor,
)
from hasten.models.config import MAX_NUMBER, MAX_SIZE, MIN_NUMBER, ConfigView

# The supported rope types and the keys that each requires.
_REQUIRED_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "frequency_factors": (),  # of GGUF files; ``_read_factors`` checks its key
}


def read_rotary(view: ConfigView, head_dim: int, max_positions: int) -> RotarySpec:
    """Return the rotary embedding of all layers. Raises ``UnsupportedModel`` or leaves faults in ``view``."""
    table_name = "rope_scaling" if view.values.get("rope_scaling") else "rope_parameters"
    table = view.values.get(table_name) or {}
    if not isinstance(table, Mapping):
        view.refuse(table_name, "a table")
        table = {}
    # The newer table holds all values; those that it lacks come from the keys beside it, as in older configurations.
    merged = {key: view.values[key] for key in ("rope_theta", "partial_rotary_factor") if view.values.get(key) is not None}
    merged |= {key: value for key, value in table.items() if value is not None}
    original = view.values.get("original_max_position_embeddings") or table.get("original_max_position_embeddings")
    merged["original_max_position_embeddings"] = original or max_positions
    rope = ConfigView({"model_type": view.values.get("model_type"), **merged}, source=view.source)
    rope_type = str(merged.get("rope_type", merged.get("type", "default")))
    if merged.get("partial_rotary_factor", 1.0) != 1.0:
        rope.refuse("partial_rotary_factor", "1: the full head is rotated")
    if head_dim % 2:
        view.refuse("head_dim", "an even number, for the rotary embedding")
    if any(isinstance(value, Mapping) for value in table.values()):
        view.refuse("rope_parameters", "one table for all layers")
    elif rope_type not in _REQUIRED_KEYS:
        rope.refuse("rope_type" if "rope_type" in merged else "type", ", ".join(_REQUIRED_KEYS))
    scaling = _read_scaling(rope_type, rope, head_dim)
    theta = rope.number("rope_theta", 10_000.0, above=1.0)  # YaRN divides by its logarithm
    rope.check()
    return RotarySpec(theta=theta, dim=head_dim, scaling=scaling)


def longest_context(view: ConfigView, rotary: RotarySpec | None, max_positions: int) -> int:
    """Return ``max_positions``, or the context after YaRN scaling if that is longer."""
    table = view.values.get("rope_scaling") or view.values.get("rope_parameters") or {}
    if rotary is not None and isinstance(rotary.scaling, YarnScaling) and table.get("original_max_position_embeddings"):
        scaled = rotary.scaling.factor * rotary.scaling.original_max_positions
        if scaled > MAX_SIZE:
            view.refuse("rope_scaling", f"a factor that makes at most {MAX_SIZE} positions")
            return max_positions
        return max(max_positions, int(scaled))
    return max_positions


def _read_scaling(rope_type: str, rope: ConfigView, head_dim: int) -> RotaryScaling | None:
    for name in _REQUIRED_KEYS.get(rope_type, ()):
        if name not in rope.values:
            rope.refuse(name, f"a number above 0, which rope type {rope_type!r} needs")
    original = rope.integer("original_max_position_embeddings", 1)
    factor = rope.number("factor", 1.0)
    if rope_type == "frequency_factors":
        return _read_factors(rope, head_dim)
    if rope_type == "linear":
        return LinearScaling(factor)
    if rope_type == "llama3":
        low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
        if high <= low:
            rope.refuse("high_freq_factor", f"above low_freq_factor={low}")
        return Llama3Scaling(factor, low, high, original)
    if rope_type == "yarn":
        has_mscale = rope.values.get("mscale") and rope.values.get("mscale_all_dim")
        mscales = (rope.number("mscale", 1.0), rope.number("mscale_all_dim", 1.0)) if has_mscale else (None, None)
        attention_factor = rope.number("attention_factor", yarn_attention_factor(factor, *mscales))
        beta_fast, beta_slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
        return YarnScaling(factor, original, attention_factor, beta_fast, beta_slow, rope.flag("truncate", True))
    return None


def _read_factors(rope: ConfigView, head_dim: int) -> FrequencyFactors | None:
    factors = rope.values.get("factors")
    if isinstance(factors, list) and len(factors) == head_dim // 2 and all(map(_is_factor, factors)):
        return FrequencyFactors(tuple(factors))
    rope.refuse("factors", f"{head_dim // 2} numbers above 0, within float32")
    return None


def _is_factor(value: object) -> bool:
    return type(value) is float and MIN_NUMBER < value <= MAX_NUMBER
