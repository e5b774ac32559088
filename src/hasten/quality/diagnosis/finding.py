"""``Finding``: one fault of an output, and ``Advice``: the setting to turn next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hasten.quality.diagnosis.observed import Measurement
from hasten.quality.diagnosis.sentences import FAULT_NAMES, Language, change_sentence, fault_sentence, other_sentence, place

Fault = Literal["repetition", "degenerate", "mixed_scripts", "too_long", "too_short", "truncation", "prompt_order"]


@dataclass(frozen=True, slots=True)
class Advice:
    """The one change to try next."""

    parameter: str  # a field of ``SamplingParams``; or "max_model_len", "prompt", "encoding", which no request can change
    value: Any = None  # the value to try; None where the parameter is no field of ``SamplingParams``
    now: Any = None

    @property
    def is_sampling_setting(self) -> bool:
        return self.parameter not in ("max_model_len", "prompt", "encoding")


@dataclass(frozen=True, slots=True)
class Finding:
    fault: Fault
    measurement: Measurement
    advice: Advice | None  # None: every setting that could help is turned already
    index: int = 0  # of the output within its request

    def title(self, language: Language = "en") -> str:
        """Return the name of the fault and where it begins."""
        where = place(self.measurement, language)
        name = FAULT_NAMES[language][self.fault]
        if not where:
            return name
        return f"{name}（{where}）" if language == "zh" else f"{name} {where}"

    def sentence(self, language: Language = "en") -> str:
        """Return one sentence that says what is wrong."""
        return fault_sentence(self.measurement, language)

    def advice_sentence(self, language: Language = "en") -> str:
        """Return what to turn next, without a full stop."""
        if self.advice is None:
            return other_sentence("none", language)
        if not self.advice.is_sampling_setting:
            return other_sentence(self.advice.parameter, language)
        return change_sentence(self.advice.parameter, self.advice.value, self.advice.now, language)

    def as_dict(self, language: Language = "en") -> dict[str, Any]:
        """Return plain data: fault, kind, place, value, sentences and advice."""
        found = self.measurement
        return {
            "fault": self.fault,
            "kind": found.kind,
            "index": self.index,
            "offset": found.offset,
            "unit": found.unit,
            "value": found.value,
            "details": dict(found.details),
            "sentence": self.sentence(language),
            "advice": None
            if self.advice is None
            else {
                "parameter": self.advice.parameter,
                "value": self.advice.value,
                "now": self.advice.now,
                "sentence": self.advice_sentence(language),
            },
        }
