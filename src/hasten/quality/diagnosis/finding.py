"""``Finding``: one fault of an output, and ``Advice``: the setting to turn next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hasten.quality.diagnosis.observed import Measurement

Fault = Literal["repetition", "degenerate", "mixed_scripts", "too_long", "too_short", "truncation", "prompt_order"]
Language = Literal["en", "zh"]


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

    def sentence(self, language: Language = "en") -> str:
        """Return one sentence that says what is wrong and where."""
        from hasten.quality.diagnosis.sentences import finding_sentence

        return finding_sentence(self, language)

    def advice_sentence(self, language: Language = "en") -> str:
        """Return one sentence that says what to turn next."""
        from hasten.quality.diagnosis.sentences import advice_sentence

        return advice_sentence(self, language)

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
