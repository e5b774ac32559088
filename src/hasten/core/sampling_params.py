"""How one request wants its tokens chosen. Field names are those of vLLM and OpenAI; every value is checked when it is made."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hasten.core.early_exit import DECAY, EXIT_RULES, REQUEST_CRITERIA, TOKEN_CRITERIA, ExitCriterion, decayed
from hasten.core.errors import InvalidRequest, nearest
from hasten.core.renamed import RENAMED_EXIT_RULES

MAX_SEQUENCES = 64
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
ACCEPTANCES = ("exact", "rejection", "typical")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The settings of one request. Plain data: it round-trips through msgpack.

    The order in which they act on a row of logits: masks (``allowed_token_ids``, ``min_tokens``, ``bad_words``,
    ``no_repeat_ngram_size``), ``logit_bias``, penalties, ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``typical_p``.

    Raises ``InvalidRequest`` naming every field that is out of range.
    """

    temperature: float = 1.0  # 0 is greedy
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float = 1.0  # keep the likeliest tokens that together reach this probability
    min_p: float = 0.0  # drop tokens less likely than this share of the likeliest
    typical_p: float = 1.0  # locally typical sampling (Meister et al., 2022)

    repetition_penalty: float = 1.0  # over prompt and answer (Keskar et al., 2019)
    presence_penalty: float = 0.0  # over the answer, once per token that occurred
    frequency_penalty: float = 0.0  # over the answer, per occurrence
    no_repeat_ngram_size: int | None = None  # over prompt and answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    bad_words: tuple[str, ...] = ()  # texts that must not occur; resolved to token ids by the tokenizer
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None

    n: int = 1  # answers returned
    seed: int | None = None  # None: the engine draws one; the answer reports it
    min_tokens: int = 0
    max_tokens: int | None = None  # None: as many as the context has room for
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # how many alternatives to report per token, 0 for the chosen one alone

    # Which guessed tokens a drafting engine accepts. exact: those that plain decoding would have drawn. rejection: others of the
    # same distribution. typical: whatever is likely enough, which is lossy.
    acceptance: str = "exact"
    posterior_threshold: float = 0.09  # of typical: a guess passes above min(threshold, alpha * exp(-entropy))
    posterior_alpha: float = 0.3

    # When tokens may leave the model before its last layer, which is lossy: see ``hasten.core.early_exit``.
    exit_rule: str = "none"
    exit_layer: int | None = None  # of rule "fixed": how many layers compute every token
    exit_threshold: float | None = None  # of rules that measure; None: the calibrated one, by exit_tolerance
    exit_tolerance: float | None = None  # accepted increase of perplexity that a threshold was calibrated for; None: 0.01
    exit_decay: float | None = DECAY  # of rules that measure each token: their threshold sinks as the answer grows; None: it stays

    beam_width: int | None = None  # beam search instead of sampling
    length_penalty: float = 1.0  # a beam's score is its log-probability over length ** length_penalty
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for name in ("bad_words", "stop", "stop_token_ids", "allowed_token_ids", "bad_words_ids"):
            value = getattr(self, name)
            if value is None and name != "allowed_token_ids":  # clients send null for "none"
                value = ()
            if isinstance(value, str):
                value = (value,)
            if isinstance(value, (list, tuple)):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            object.__setattr__(self, name, value)
        checks = [*self._checks(), *self._acceptance_checks(), *self._exit_checks()]
        wrong = [f"{name}={getattr(self, name)!r} (allowed: {allowed})" for name, allowed, ok in checks if not ok]
        if wrong:
            raise InvalidRequest(
                f"{len(wrong)} sampling setting{'s are' if len(wrong) > 1 else ' is'} out of range: {'; '.join(wrong)}",
                remedy="Correct the value, or leave it out for the default",
            )

    def _checks(self) -> list[tuple[str, str, bool]]:
        """(field, what is allowed, whether this value is)."""
        number, whole = _number, _whole
        beams = self.beam_width
        most = self.max_tokens if whole(self.max_tokens, 1) else None
        least = self.n if whole(self.n, 1) else 1
        return [
            ("temperature", "0 (greedy) or a number above 0", number(self.temperature, 0.0, math.inf)),
            ("top_k", "None or a whole number from 1", self.top_k is None or whole(self.top_k, 1)),
            ("top_p", "above 0, up to 1", number(self.top_p, 0.0, 1.0) and self.top_p > 0),
            ("min_p", "0 to 1", number(self.min_p, 0.0, 1.0)),
            ("typical_p", "above 0, up to 1", number(self.typical_p, 0.0, 1.0) and self.typical_p > 0),
            ("repetition_penalty", "a number above 0", number(self.repetition_penalty, 0, 1e9) and self.repetition_penalty > 0),
            ("presence_penalty", "-2 to 2", number(self.presence_penalty, -2.0, 2.0)),
            ("frequency_penalty", "-2 to 2", number(self.frequency_penalty, -2.0, 2.0)),
            ("no_repeat_ngram_size", "None or from 1", self.no_repeat_ngram_size is None or whole(self.no_repeat_ngram_size, 1)),
            (
                "logit_bias",
                "token ids from 0 to numbers from -100 to 100",
                isinstance(self.logit_bias, Mapping)
                and all(whole(k, 0) and number(v, -100, 100) for k, v in self.logit_bias.items()),
            ),
            ("bad_words", "texts that are not empty", _texts(self.bad_words)),
            (
                "bad_words_ids",
                "sequences of token ids from 0, none empty",
                isinstance(self.bad_words_ids, tuple) and all(w and _ids(w) for w in self.bad_words_ids),
            ),
            (
                "allowed_token_ids",
                "None or token ids from 0, not empty",
                self.allowed_token_ids is None or (_ids(self.allowed_token_ids) and len(self.allowed_token_ids) > 0),
            ),
            ("n", f"1 to {MAX_SEQUENCES}", whole(self.n, 1, MAX_SEQUENCES)),
            ("seed", "None or 0 to 2**63 - 1", self.seed is None or whole(self.seed, 0, 2**63 - 1)),
            ("min_tokens", "from 0, at most max_tokens", whole(self.min_tokens, 0, most)),
            ("max_tokens", "None or from 1", self.max_tokens is None or whole(self.max_tokens, 1)),
            (
                "stop",
                f"up to {MAX_STOP_STRINGS} texts that are not empty",
                _texts(self.stop) and len(self.stop) <= MAX_STOP_STRINGS,
            ),
            ("stop_token_ids", "token ids from 0", _ids(self.stop_token_ids)),
            ("logprobs", f"None or 0 to {MAX_LOGPROBS}", self.logprobs is None or whole(self.logprobs, 0, MAX_LOGPROBS)),
            ("beam_width", f"None or n to {MAX_SEQUENCES}", beams is None or whole(beams, least, MAX_SEQUENCES)),
            ("length_penalty", "a finite number", number(self.length_penalty, -1e3, 1e3)),
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
            ("posterior_threshold", "above 0, up to 1", _number(self.posterior_threshold, 0, 1) and self.posterior_threshold > 0),
            ("posterior_alpha", "above 0, up to 1", _number(self.posterior_alpha, 0, 1) and self.posterior_alpha > 0),
            ("posterior_threshold", "0.09 unless acceptance is typical", typical or self.posterior_threshold == 0.09),
            ("posterior_alpha", "0.3 unless acceptance is typical", typical or self.posterior_alpha == 0.3),
        ]

    def _exit_checks(self) -> list[tuple[str, str, bool]]:
        measured, layer, none = self.exit_rule in (*TOKEN_CRITERIA, *REQUEST_CRITERIA), self.exit_layer, None
        threshold, tolerance, decay = self.exit_threshold, self.exit_tolerance, self.exit_decay
        new_rule = RENAMED_EXIT_RULES.get(str(self.exit_rule))
        renamed = "" if new_rule is None else f"; {self.exit_rule} was renamed to {new_rule}"
        return [
            ("exit_rule", ", ".join(EXIT_RULES) + renamed, self.exit_rule in EXIT_RULES),
            ("exit_rule", "none with beam_width", self.beam_width is None or self.exit_rule == "none"),
            ("exit_layer", "from 1 with exit_rule fixed", self.exit_rule != "fixed" or _whole(layer, 1)),
            ("exit_layer", "None unless exit_rule is fixed", self.exit_rule == "fixed" or layer is none),
            ("exit_threshold", "None, or 0 to 2", threshold is none or _number(threshold, 0, 2)),
            ("exit_threshold", "None unless exit_rule measures", measured or threshold is none),
            ("exit_tolerance", "None, or above 0, up to 1", tolerance is none or (_number(tolerance, 0, 1) and tolerance > 0)),
            ("exit_tolerance", "None unless exit_rule measures", measured or tolerance is none),
            ("exit_tolerance", "None with exit_threshold", tolerance is none or threshold is none),
            ("exit_decay", "None, or 0 to 1000", decay is none or _number(decay, 0, 1000)),
            ("exit_decay", f"{DECAY} unless exit_rule measures each token", self.exit_rule in TOKEN_CRITERIA or decay == DECAY),
            ("exit_decay", f"{DECAY} without exit_threshold: calibrated ones hold for it", threshold is not none or decay == DECAY),
        ]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def exact(self) -> bool:
        """Whether each position has one right token, whatever is guessed. A greedy request has, by any rule."""
        return self.acceptance == "exact" or self.greedy

    def exit_criterion(self, num_output_tokens: int) -> ExitCriterion | None:
        """Return the criterion for the token that precedes output token ``num_output_tokens``, or None without one.

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
            return ExitCriterion(self.exit_rule, self.exit_threshold, whole=True)
        return ExitCriterion(self.exit_rule, decayed(self.exit_threshold, self.exit_decay, num_output_tokens / self.max_tokens))

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed. Raises ``InvalidRequest`` for an unknown field."""
        return SamplingParams.from_dict({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """From named values. Raises ``InvalidRequest`` for an unknown name, with the nearest known one."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InvalidRequest("unknown sampling setting", got=repr(name), remedy=nearest(name, names))
        return cls(**values)


def _number(value: object, low: float, high: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return low <= value <= high and abs(value) <= sys.float_info.max  # no infinity, no whole number beyond floats; NaN fails both


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_whole(token, 0) for token in value)


def _whole(value: object, low: int, high: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
