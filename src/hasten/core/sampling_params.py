"""``SamplingParams``: the settings of one request. Field names are those of vLLM and OpenAI."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hasten.core.early_exit import DECAY, EXIT_RULES, REQUEST_CRITERIA, TOKEN_CRITERIA, ExitCriterion, decayed_threshold
from hasten.core.errors import InvalidRequest, nearest
from hasten.core.renamed import RENAMED_EXIT_RULES

MAX_SEQUENCES = 64
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
ACCEPTANCES = ("exact", "rejection", "typical")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The settings of one request. Plain data: it round-trips through msgpack.

    They apply to a row of logits in this order: masks (``allowed_token_ids``, ``min_tokens``, ``bad_words``,
    ``no_repeat_ngram_size``), ``logit_bias``, penalties, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``typical_p``.

    Raises ``InvalidRequest`` that names every field with an invalid value.
    """

    temperature: float = 1.0  # 0 is greedy
    top_k: int | None = None  # keep the k most likely tokens
    top_p: float = 1.0  # keep the most likely tokens whose probabilities add up to this
    min_p: float = 0.0  # drop tokens less likely than this fraction of the top token's probability
    typical_p: float = 1.0  # locally typical sampling (Meister et al., 2022)

    repetition_penalty: float = 1.0  # over prompt and output (Keskar et al., 2019)
    presence_penalty: float = 0.0  # over the output, once per distinct token
    frequency_penalty: float = 0.0  # over the output, per occurrence
    no_repeat_ngram_size: int | None = None  # over prompt and output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> value added to its logit
    bad_words: tuple[str, ...] = ()  # texts that must not occur, however they are cut into tokens
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None

    n: int = 1  # number of answers
    seed: int | None = None  # None: the engine draws one; the output reports it
    min_tokens: int = 0
    max_tokens: int | None = None  # None: up to the end of the context
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # number of top tokens to report per output token; 0: the output token only

    # Acceptance rule for draft tokens. "exact": the tokens of plain decoding. "rejection": tokens of the same distribution.
    # "typical": any token above a probability threshold, which is lossy.
    acceptance: str = "exact"
    posterior_threshold: float = 0.09  # "typical" only; the threshold is min(posterior_threshold, posterior_alpha * exp(-entropy))
    posterior_alpha: float = 0.3

    # Early exit, which is lossy; see ``hasten.core.early_exit``.
    exit_rule: str = "none"
    exit_layer: int | None = None  # rule "fixed" only: layers that compute every token
    exit_threshold: float | None = None  # confidence rules only; None: the threshold calibrated for ``exit_tolerance``
    exit_tolerance: float | None = None  # accepted relative increase of perplexity; None: 0.01
    exit_decay: float | None = DECAY  # decay of the threshold over the output, for rules that test each token; None: constant

    beam_width: int | None = None  # number of beams; None: sampling instead of beam search
    length_penalty: float = 1.0  # beam score = log-probability / length ** length_penalty
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for name in ("bad_words", "stop", "stop_token_ids", "allowed_token_ids", "bad_words_ids"):
            value = getattr(self, name)
            if value is None and name != "allowed_token_ids":  # clients send null for an empty list
                value = ()
            if isinstance(value, str):
                value = (value,)
            if isinstance(value, (list, tuple)):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            object.__setattr__(self, name, value)
        checks = [*self._checks(), *self._acceptance_checks(), *self._exit_checks()]
        invalid = [f"{name}={getattr(self, name)!r} (allowed: {allowed})" for name, allowed, ok in checks if not ok]
        if invalid:
            raise InvalidRequest(
                f"{len(invalid)} sampling setting{'s are' if len(invalid) > 1 else ' is'} out of range: {'; '.join(invalid)}",
                remedy="Correct the value, or omit it for the default",
            )

    def _checks(self) -> list[tuple[str, str, bool]]:
        """Return (field, allowed values, whether the value is one of them) for each rule."""
        beams = self.beam_width
        max_min_tokens = self.max_tokens if _is_int(self.max_tokens, 1) else None
        min_beam_width = self.n if _is_int(self.n, 1) else 1
        return [
            ("temperature", "0 (greedy) or a number above 0", _is_number(self.temperature, 0.0, math.inf)),
            ("top_k", "None or an integer from 1", self.top_k is None or _is_int(self.top_k, 1)),
            ("top_p", "above 0, up to 1", _is_number(self.top_p, 0.0, 1.0) and self.top_p > 0),
            ("min_p", "0 to 1", _is_number(self.min_p, 0.0, 1.0)),
            ("typical_p", "above 0, up to 1", _is_number(self.typical_p, 0.0, 1.0) and self.typical_p > 0),
            ("repetition_penalty", "a number above 0", _is_number(self.repetition_penalty, 0, 1e9) and self.repetition_penalty > 0),
            ("presence_penalty", "-2 to 2", _is_number(self.presence_penalty, -2.0, 2.0)),
            ("frequency_penalty", "-2 to 2", _is_number(self.frequency_penalty, -2.0, 2.0)),
            (
                "no_repeat_ngram_size",
                "None or an integer from 1",
                self.no_repeat_ngram_size is None or _is_int(self.no_repeat_ngram_size, 1),
            ),
            (
                "logit_bias",
                "a mapping from token ids to numbers from -100 to 100",
                isinstance(self.logit_bias, Mapping)
                and all(_is_int(k, 0) and _is_number(v, -100, 100) for k, v in self.logit_bias.items()),
            ),
            ("bad_words", "non-empty texts", _are_texts(self.bad_words)),
            (
                "bad_words_ids",
                "non-empty sequences of token ids from 0",
                isinstance(self.bad_words_ids, tuple) and all(w and _are_token_ids(w) for w in self.bad_words_ids),
            ),
            (
                "allowed_token_ids",
                "None, or one token id or more from 0",
                self.allowed_token_ids is None or (_are_token_ids(self.allowed_token_ids) and self.allowed_token_ids != ()),
            ),
            ("n", f"1 to {MAX_SEQUENCES}", _is_int(self.n, 1, MAX_SEQUENCES)),
            ("seed", "None or 0 to 2**63 - 1", self.seed is None or _is_int(self.seed, 0, 2**63 - 1)),
            ("min_tokens", "0 to max_tokens", _is_int(self.min_tokens, 0, max_min_tokens)),
            ("max_tokens", "None or an integer from 1", self.max_tokens is None or _is_int(self.max_tokens, 1)),
            (
                "stop",
                f"up to {MAX_STOP_STRINGS} non-empty texts",
                _are_texts(self.stop) and len(self.stop) <= MAX_STOP_STRINGS,
            ),
            ("stop_token_ids", "token ids from 0", _are_token_ids(self.stop_token_ids)),
            ("logprobs", f"None or 0 to {MAX_LOGPROBS}", self.logprobs is None or _is_int(self.logprobs, 0, MAX_LOGPROBS)),
            ("beam_width", f"None or n to {MAX_SEQUENCES}", beams is None or _is_int(beams, min_beam_width, MAX_SEQUENCES)),
            ("length_penalty", "a finite number", _is_number(self.length_penalty, -1e3, 1e3)),
            ("early_stopping", "True, False or 'never'", type(self.early_stopping) is bool or self.early_stopping == "never"),
            ("temperature", "0 or 1 with beam_width (beam search does not sample)", beams is None or self.temperature in (0, 1)),
            ("length_penalty", "1.0 without beam_width", beams is not None or self.length_penalty == 1.0),
            ("early_stopping", "False without beam_width", beams is not None or self.early_stopping is False),
            (
                "beam_width",
                "None with top_k, top_p, min_p or typical_p (beam search does not sample)",
                beams is None or (self.top_k is None and (self.top_p, self.min_p, self.typical_p) == (1.0, 0.0, 1.0)),
            ),
        ]

    def _acceptance_checks(self) -> list[tuple[str, str, bool]]:
        typical = self.acceptance == "typical"
        return [
            ("acceptance", ", ".join(ACCEPTANCES), self.acceptance in ACCEPTANCES),
            (
                "posterior_threshold",
                "above 0, up to 1",
                _is_number(self.posterior_threshold, 0, 1) and self.posterior_threshold > 0,
            ),
            ("posterior_alpha", "above 0, up to 1", _is_number(self.posterior_alpha, 0, 1) and self.posterior_alpha > 0),
            ("posterior_threshold", "0.09 unless acceptance is typical", typical or self.posterior_threshold == 0.09),
            ("posterior_alpha", "0.3 unless acceptance is typical", typical or self.posterior_alpha == 0.3),
        ]

    def _exit_checks(self) -> list[tuple[str, str, bool]]:
        tests_confidence, layer = self.exit_rule in (*TOKEN_CRITERIA, *REQUEST_CRITERIA), self.exit_layer
        threshold, tolerance, decay = self.exit_threshold, self.exit_tolerance, self.exit_decay
        new_rule = RENAMED_EXIT_RULES.get(str(self.exit_rule))
        renamed = "" if new_rule is None else f"; {self.exit_rule} was renamed to {new_rule}"
        return [
            ("exit_rule", ", ".join(EXIT_RULES) + renamed, self.exit_rule in EXIT_RULES),
            ("exit_rule", "none with beam_width", self.beam_width is None or self.exit_rule == "none"),
            ("exit_layer", "from 1 with exit_rule fixed", self.exit_rule != "fixed" or _is_int(layer, 1)),
            ("exit_layer", "None unless exit_rule is fixed", self.exit_rule == "fixed" or layer is None),
            ("exit_threshold", "None, or 0 to 2", threshold is None or _is_number(threshold, 0, 2)),
            ("exit_threshold", "None unless exit_rule is a confidence rule", tests_confidence or threshold is None),
            ("exit_tolerance", "None, or above 0, up to 1", tolerance is None or (_is_number(tolerance, 0, 1) and tolerance > 0)),
            ("exit_tolerance", "None unless exit_rule is a confidence rule", tests_confidence or tolerance is None),
            ("exit_tolerance", "None with exit_threshold", tolerance is None or threshold is None),
            ("exit_decay", "None, or 0 to 1000", decay is None or _is_number(decay, 0, 1000)),
            ("exit_decay", f"{DECAY} unless exit_rule tests each token", self.exit_rule in TOKEN_CRITERIA or decay == DECAY),
            (
                "exit_decay",
                f"{DECAY} without exit_threshold, because calibrated thresholds hold for it only",
                threshold is not None or decay == DECAY,
            ),
        ]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on which tokens occur in the sequence."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def exact(self) -> bool:
        """Whether the drafts cannot change the output; greedy requests are exact under every acceptance rule."""
        return self.acceptance == "exact" or self.greedy

    def exit_criterion(self, num_output_tokens: int) -> ExitCriterion | None:
        """Return the exit criterion of the token before output token ``num_output_tokens``, or None.

        ``max_tokens`` is set, and so is ``exit_threshold`` if the exit rule needs one.
        """
        if (num_output_tokens == 0) != (self.exit_rule in REQUEST_CRITERIA):
            return None
        if self.exit_rule == "token_table":
            return ExitCriterion(self.exit_rule, 0.0)
        if self.exit_rule not in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
            return None
        assert self.exit_threshold is not None and self.max_tokens is not None
        if num_output_tokens == 0:
            return ExitCriterion(self.exit_rule, self.exit_threshold, per_request=True)
        threshold = decayed_threshold(self.exit_threshold, self.exit_decay, num_output_tokens / self.max_tokens)
        return ExitCriterion(self.exit_rule, threshold)

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with some fields changed. Raises ``InvalidRequest`` for an unknown field."""
        return SamplingParams.from_dict({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Return the params for named values. Raises ``InvalidRequest`` for an unknown name."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InvalidRequest("unknown sampling setting", got=repr(name), remedy=nearest(name, names))
        return cls(**values)


def _is_number(value: object, low: float, high: float) -> bool:
    # NaN fails both comparisons; the second one rejects infinity and integers too large for a float.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and abs(value) <= sys.float_info.max
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _are_token_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_int(token, 0) for token in value)


def _is_int(value: object, low: int, high: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
