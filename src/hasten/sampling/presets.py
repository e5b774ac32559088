"""Named starting points for the sampling settings, by what the answer is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hasten.core.errors import InvalidOption, nearest


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
            "Variety between answers, with each still close to what the model finds likely.",
        ),
        "deterministic": Preset(
            {"temperature": 0.2, "top_k": 20},
            "Almost always the likeliest token, with enough chance left to leave a loop.",
        ),
        "qa": Preset(
            {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
            "Facts want the likely token; a light penalty stops restating the question.",
        ),
        "code": Preset(
            {"temperature": 0.2, "top_p": 0.95, "repetition_penalty": 1.05},
            "Code repeats names by right, so the penalty stays light and the temperature low.",
        ),
        "poetry": Preset(
            {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.3},
            "Any word used once gives way a little to words not used yet.",
        ),
        "long-chat": Preset(
            {"temperature": 0.7, "top_p": 0.9, "no_repeat_ngram_size": 4},
            "Long answers fall into loops; no run of four tokens comes twice.",
        ),
        "translation": Preset(
            {"temperature": 0.0, "beam_width": 4, "length_penalty": 0.8},
            "One best answer by beam search, with long candidates favoured a little less than by their mean.",
        ),
    }
)


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, as fields of ``SamplingParams``. Raises ``InvalidOption`` for an unknown name."""
    if name not in PRESETS:
        raise InvalidOption("unknown preset", got=repr(name), remedy=nearest(name, PRESETS))
    return dict(PRESETS[name].settings)
