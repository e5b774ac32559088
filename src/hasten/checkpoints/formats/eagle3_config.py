"""``Eagle3Config``: the ``config.json`` of an EAGLE-3 head, as the ``speculators`` project writes it.

The paper's own form is read too: there config.json is the layer's configuration, with a few keys beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hasten.core.errors import CheckpointError

# Options of some heads that change the computation and that hasten does not compute.
UNSUPPORTED = ("norm_before_fc", "norm_output", "fc_norm", "parallel_drafting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config:
    layer: Mapping[str, Any]  # the layer's own configuration, written like a model's config.json
    draft_vocab_size: int
    aux_layers: tuple[int, ...] | None = None  # the target's state after this many layers; None: as the paper chose
    target_size: int | None = None  # hidden size of the target; None: the head's own
    norm_before_residual: bool = False
    num_guesses: int = 5  # one after the other, as it was trained
    verifier: str | None = None  # the target's name or path
    architectures: tuple[str, ...] = ()  # the target's
    # Of each guess, from the first: how often rank r of its choices was right on held-out text.
    accuracies: tuple[tuple[float, ...], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """``config.json``; only ``head_accuracies`` is hasten's own."""
        return {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "transformer_layer_config": dict(self.layer),
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_size,
            "norm_before_residual": self.norm_before_residual,
            "eagle_aux_hidden_state_layer_ids": None if self.aux_layers is None else list(self.aux_layers),
            "speculators_config": {
                "algorithm": "eagle3",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": self.num_guesses}],
                "default_proposal_method": "greedy",
                "verifier": {"name_or_path": self.verifier, "architectures": list(self.architectures)},
            },
            "head_accuracies": [list(ranks) for ranks in self.accuracies],
            "tie_word_embeddings": False,
        }


def read_config(folder: Path, values: Mapping[str, Any]) -> Eagle3Config:
    """Raises ``CheckpointError`` with every value of ``folder``'s config.json that no EAGLE-3 head of one layer has."""
    layer, nested = values.get("transformer_layer_config") or values, _table(values.get("eagle_config"))
    about, ranks = _table(values.get("speculators_config")), values.get("head_accuracies") or []
    verifier = _table(about.get("verifier"))
    named, architectures = verifier.get("name_or_path"), verifier.get("architectures") or []
    kind, depth = values.get("speculators_model_type", "eagle3"), _table(layer).get("num_hidden_layers", 1)
    draft = values.get("draft_vocab_size") or _table(layer).get("vocab_size")
    states = values.get("eagle_aux_hidden_state_layer_ids") or nested.get("eagle_aux_hidden_state_layer_ids")
    target, before, fused = values.get("target_hidden_size"), values.get("norm_before_residual", False), "use_aux_hidden_state"
    checks = [
        ("speculators_model_type", kind, kind == "eagle3", "'eagle3'"),
        ("transformer_layer_config", layer, isinstance(layer, Mapping), "a table"),
        ("num_hidden_layers", depth, depth == 1, "1: the head is one layer"),
        ("draft_vocab_size", draft, _is_size(draft), "a whole number from 1"),
        ("eagle_aux_hidden_state_layer_ids", states, states is None or _is_sizes(states), "whole numbers from 1"),
        ("target_hidden_size", target, target is None or _is_size(target), "a whole number from 1"),
        ("norm_before_residual", before, isinstance(before, bool), "true or false"),
        ("head_accuracies", ranks, _is_rates(ranks), "a list of rates from 0 to 1 per guess"),
        ("verifier.name_or_path", named, named is None or isinstance(named, str), "a name or path"),
        ("verifier.architectures", architectures, _is_names(architectures), "a list of names"),
        (f"eagle_config.{fused}", nested.get(fused), nested.get(fused, True) is True, "true"),
        *((name, values.get(name), not values.get(name), "off") for name in UNSUPPORTED),
    ]
    faults = [f"{name}={value!r} (allowed: {allowed})" for name, value, right, allowed in checks if not right]
    if faults:
        raise CheckpointError(
            f"the configuration in {folder} is not that of an EAGLE-3 head that hasten computes: {'; '.join(faults)}",
            remedy="Use another head, or correct config.json if it is wrong",
        )
    assert _is_size(draft)
    methods = about.get("proposal_methods")
    guesses = _table(methods[0]).get("speculative_tokens") if isinstance(methods, list) and methods else None
    return Eagle3Config(
        layer=layer,
        draft_vocab_size=draft,
        aux_layers=None if states is None else tuple(states),
        target_size=target,
        norm_before_residual=before,
        num_guesses=guesses if _is_size(guesses) else 5,
        verifier=named,
        architectures=tuple(architectures),
        accuracies=tuple(tuple(rates) for rates in ranks),
    )


def _table(value: object) -> Mapping[str, Any]:
    """What is no table says nothing."""
    return value if isinstance(value, Mapping) else {}


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_size(item) for item in value)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_rates(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(rates, list) and all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates) for rates in value
    )
