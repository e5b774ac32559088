"""Named sampling settings for common purposes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hasten.core.errors import InvalidOption, nearest, show


@dataclass(frozen=True, slots=True)
class Preset:
    settings: Mapping[str, Any]  # fields of SamplingParams
    reason: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "creative": Preset(
            {"temperature": 1.0, "top_p": 0.95},
            "The model's own distribution, without the unlikely tail that breaks a text.",
        ),
        "balanced": Preset(
            {"temperature": 0.7, "top_p": 0.9},
            "Outputs vary, and each stays close to what the model finds likely.",
        ),
        "deterministic": Preset(
            {"temperature": 0.2, "top_k": 20},
            "Almost always the most likely token, with enough randomness to leave a loop.",
        ),
        "qa": Preset(
            {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
            "Facts need the likely token; a light penalty stops the output from restating the question.",
        ),
        "code": Preset(
            {"temperature": 0.2, "top_p": 0.95, "repetition_penalty": 1.05},
            "Code has to repeat names, so the penalty stays light and the temperature low.",
        ),
        "poetry": Preset(
            {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.3},
            "A word that was used becomes slightly less likely than one that was not.",
        ),
        "long-chat": Preset(
            {"temperature": 0.7, "top_p": 0.9, "no_repeat_ngram_size": 4},
            "Long outputs fall into loops; no sequence of four tokens occurs twice.",
        ),
        "translation": Preset(
            {"temperature": 0.0, "beam_width": 4, "length_penalty": 0.8},
            "Beam search returns one best output; long candidates gain slightly less than with their mean log-probability.",
        ),
    }
)


def preset(name: str) -> dict[str, Any]:
    """Return a preset as fields of ``SamplingParams``; raises ``InvalidOption`` for an unknown name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidOption("unknown preset", got=show(name), remedy=nearest(name, PRESETS))
    return dict(PRESETS[name].settings)
