"""Acceptance rules: which draft tokens become output. One rule per file, named as the file."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import AcceptanceRule
from hasten.speculative.acceptance.rejection import Rejection
from hasten.speculative.acceptance.typical import Typical

RULES: Mapping[str, type[Rejection] | type[Typical]] = {"rejection": Rejection, "typical": Typical}


def acceptance_rule(params: SamplingParams) -> AcceptanceRule:
    """Return the rule of a request. Exact acceptance needs none: it compares with the sample."""
    return RULES[params.acceptance].from_params(params)
