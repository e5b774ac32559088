"""Which guesses become output: one rule a file, named as the file is."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import Acceptance
from hasten.speculative.acceptance.rejection import Rejection
from hasten.speculative.acceptance.typical import Typical

RULES: Mapping[str, type[Rejection] | type[Typical]] = {"rejection": Rejection, "typical": Typical}


def acceptance(params: SamplingParams) -> Acceptance:
    """The rule of a request that has one: exact requests do not, a guess of theirs is right if it is the position's one sample."""
    return RULES[params.acceptance].of(params)
