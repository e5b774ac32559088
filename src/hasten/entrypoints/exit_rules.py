"""``ExitRules``: checks and completes the exit rule of a request, by the model's trained exits."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.model_info import ExitInfo

TOLERANCE = 0.01  # for requests with neither exit_threshold nor exit_tolerance
TABLE_RULES = ("token_table", "prompt_hash")


@dataclass(frozen=True, slots=True)
class ExitRules:
    exits: ExitInfo

    def resolve(self, params: SamplingParams) -> tuple[SamplingParams, int | None]:
        """Return the params with the threshold of their rule, and the exit layer if the rule is fixed.

        Raises ``InvalidRequest`` for rules that these exits do not support.
        """
        rule, exits = params.exit_rule, self.exits
        if rule == "none":
            return params, None
        if rule == "fixed":
            return params, self._checked_layer(params.exit_layer)
        if not exits.are_trained:
            raise InvalidRequest(
                "this engine has no trained exits",
                got=f"exit_rule={rule!r}",
                allowed="none, fixed",
                remedy="Load the model with exits=..., or train some: hasten train exits",
            )
        if rule in TABLE_RULES and rule not in exits.table_rules:
            raise InvalidRequest("the exits of this engine have no table for this rule", got=f"exit_rule={rule!r}")
        if rule in TABLE_RULES or params.exit_threshold is not None:
            return params, None
        return params.replace(exit_threshold=_calibrated_threshold(exits, params), exit_tolerance=None), None

    def _checked_layer(self, layer: int | None) -> int:
        num_layers = self.exits.num_layers
        assert layer is not None
        if layer > num_layers:
            raise InvalidRequest("the model has fewer layers than that", got=f"exit_layer={layer}", allowed=f"1 to {num_layers}")
        return layer


def _calibrated_threshold(exits: ExitInfo, params: SamplingParams) -> float:
    tolerance = TOLERANCE if params.exit_tolerance is None else params.exit_tolerance
    calibrations = [each for each in exits.calibrations if each.rule == params.exit_rule]
    found = next((each for each in calibrations if abs(each.tolerance - tolerance) < 1e-9), None)
    if found is None:
        known = sorted(each.tolerance for each in calibrations)
        raise InvalidRequest(
            f"the exits of this engine are not calibrated for this tolerance of {params.exit_rule}",
            got=f"exit_tolerance={tolerance:g}",
            allowed=", ".join(f"{value:g}" for value in known) or "none: they were never calibrated",
            remedy="Take one of these, or give an exit_threshold",
        )
    return found.threshold
