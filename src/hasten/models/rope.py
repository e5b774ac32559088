"""Rotary settings of a configuration: both the ``rope_parameters`` table and the older ``rope_theta`` with ``rope_scaling``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.layers.rope_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YarnScaling, yarn_attention_factor
from hasten.layers.spec import RotarySpec
from hasten.models.config import ConfigView

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


def read_rotary(view: ConfigView, head_dim: int, max_positions: int) -> RotarySpec:
    """The rotary embedding that every layer shares. Faults are left in ``view``."""
    table = view.values.get("rope_scaling") or view.values.get("rope_parameters") or {}
    if not isinstance(table, Mapping):
        view.refuse("rope_scaling" if view.values.get("rope_scaling") else "rope_parameters", "a table")
        table = {}
    # The newer table holds every value; what it lacks is taken from the keys beside it, as in older configurations.
    outer = {key: view.values[key] for key in ("rope_theta", "partial_rotary_factor") if view.values.get(key) is not None}
    original = view.values.get("original_max_position_embeddings") or table.get("original_max_position_embeddings")
    merged = {**outer, **{key: value for key, value in table.items() if value is not None}}
    merged["original_max_position_embeddings"] = original or max_positions
    rope = ConfigView({"model_type": view.values.get("model_type"), **merged})
    kind = merged.get("rope_type", merged.get("type", "default"))
    if merged.get("partial_rotary_factor", 1.0) != 1.0:
        rope.refuse("partial_rotary_factor", "1: the whole head is rotated")
    if head_dim % 2:
        view.refuse("head_dim", "an even number, for the rotary embedding")
    if any(isinstance(value, Mapping) for value in table.values()):
        view.refuse("rope_parameters", "one table for all layers")
    elif kind not in KINDS:
        rope.refuse("rope_type" if "rope_type" in merged else "type", ", ".join(KINDS))
    scaling = _read_scaling(str(kind), rope, merged)
    theta = rope.number("rope_theta", 10_000.0)
    rope.check()
    return RotarySpec(theta=theta, dim=head_dim, scaling=scaling)


def longest_context(view: ConfigView, rotary: RotarySpec | None, max_positions: int) -> int:
    """YaRN configurations may name the context of pretraining alone, and leave the stretched one to be worked out."""
    table = view.values.get("rope_scaling") or view.values.get("rope_parameters") or {}
    if rotary is not None and isinstance(rotary.scaling, YarnScaling) and table.get("original_max_position_embeddings"):
        return max(max_positions, int(rotary.scaling.factor * rotary.scaling.original_max_positions))
    return max_positions


def _read_scaling(kind: str, rope: ConfigView, table: Mapping[str, Any]) -> RotaryScaling | None:
    needed = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    }
    for name in needed.get(kind, ()):
        if name not in table:
            rope.refuse(name, f"a number above 0, which rope type {kind!r} needs")
    original = rope.integer("original_max_position_embeddings", 1)
    factor = rope.number("factor", 1.0)
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
        if high <= low:
            rope.refuse("high_freq_factor", f"above low_freq_factor={low}")
        return Llama3Scaling(factor, low, high, original)
    if kind == "yarn":
        named = table.get("mscale") and table.get("mscale_all_dim")
        weights = (rope.number("mscale", 1.0), rope.number("mscale_all_dim", 1.0)) if named else (None, None)
        attention_factor = rope.number("attention_factor", yarn_attention_factor(factor, *weights))
        beta_fast, beta_slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
        return YarnScaling(factor, original, attention_factor, beta_fast, beta_slow, rope.flag("truncate", True))
    return None
