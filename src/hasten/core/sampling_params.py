"""``SamplingParams``: the settings of one request. Field names are those of vLLM and OpenAI."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hasten.core.check_fields import Fault, check_fields
from hasten.core.early_exit import DECAY, EXIT_RULES, REQUEST_CRITERIA, TOKEN_CRITERIA, ExitCriterion, decayed_threshold
from hasten.core.errors import InvalidRequest, nearest, show
from hasten.core.field_type import Length, OneOf, Range
from hasten.core.renamed import RENAMED_EXIT_RULES
from hasten.core.structured_outputs import StructuredOutputs

MAX_SEQUENCES = 64
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 1024
MAX_ITEMS = 2**20  # of a setting that is a collection; the engine's own limits are lower (``EngineOptions.max_stop_strings``)
MAX_WORD = 2**20  # characters of a stop string or a bad word; the engine's own limits are lower
MAX_TOKENS = 2**31 - 1
ACCEPTANCES = ("exact", "rejection", "typical")

TokenCount = Annotated[int, Range(1, MAX_TOKENS)]
TokenId = Annotated[int, Range(0, MAX_TOKENS)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
Penalty = Annotated[float, Range(-2, 2)]
Words = Annotated[tuple[Annotated[str, Length(1, MAX_WORD)], ...], Length(0, MAX_ITEMS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The settings of one request. Plain data: it round-trips through msgpack.

    They apply to a row of logits in this order: masks (``structured_outputs``, ``allowed_token_ids``, ``min_tokens``,
    ``bad_words``, ``no_repeat_ngram_size``), ``logit_bias``, penalties, ``temperature``, ``top_k``, ``top_p``, ``min_p``,
    ``typical_p``.

    Raises ``InvalidRequest`` that names every field with an invalid value.
    """

    temperature: Annotated[float, Range(0)] = 1.0  # 0 is greedy
    top_k: TokenCount | None = None  # keep the k most likely tokens
    top_p: PositiveShare = 1.0  # keep the most likely tokens whose probabilities add up to this
    min_p: Share = 0.0  # drop tokens less likely than this fraction of the top token's probability
    typical_p: PositiveShare = 1.0  # locally typical sampling (Meister et al., 2022)

    repetition_penalty: Annotated[float, Range(1e-9, 1e9)] = 1.0  # over prompt and output (Keskar et al., 2019)
    presence_penalty: Penalty = 0.0  # over the output, once per distinct token
    frequency_penalty: Penalty = 0.0  # over the output, per occurrence
    no_repeat_ngram_size: TokenCount | None = None  # over prompt and output
    # token id -> value added to its logit
    logit_bias: Annotated[Mapping[TokenId, Annotated[float, Range(-100, 100)]], Length(0, MAX_ITEMS)] = field(default_factory=dict)
    bad_words: Words = ()  # texts that must not occur, however they are cut into tokens
    bad_words_ids: Annotated[tuple[Annotated[tuple[TokenId, ...], Length(1, MAX_ITEMS)], ...], Length(0, MAX_ITEMS)] = ()
    allowed_token_ids: Annotated[tuple[TokenId, ...], Length(1, MAX_ITEMS)] | None = None

    n: Annotated[int, Range(1, MAX_SEQUENCES)] = 1  # number of answers
    seed: Annotated[int, Range(0, 2**63 - 1)] | None = None  # None: the engine draws one; the output reports it
    min_tokens: Annotated[int, Range(0, MAX_TOKENS)] = 0
    max_tokens: TokenCount | None = None  # None: up to the end of the context
    stop: Words = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Length(0, MAX_STOP_TOKEN_IDS)] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    # number of top tokens to report per output token; 0: the output token only
    logprobs: Annotated[int, Range(0, MAX_LOGPROBS)] | None = None

    # The form of the output. It goes on until the form is complete, or ends early by ``max_tokens`` or a stop string
    # (``CompletionOutput.is_complete``).
    structured_outputs: StructuredOutputs | None = None
    # Tokens of the model's thought, its marks not included; what exceeds them is closed, and the answer follows. None: no limit.
    # ``structured_outputs`` is the form of the answer alone.
    thinking_token_budget: Annotated[int, Range(0, MAX_TOKENS)] | None = None

    # Acceptance rule for draft tokens. "exact": the tokens of plain decoding. "rejection": tokens of the same distribution.
    # "typical": any token above a probability threshold, which is lossy.
    acceptance: Annotated[str, OneOf(ACCEPTANCES)] = "exact"
    # "typical" only; the threshold is min(posterior_threshold, posterior_alpha * exp(-entropy))
    posterior_threshold: PositiveShare = 0.09
    posterior_alpha: PositiveShare = 0.3

    # Early exit, which is lossy; see ``hasten.core.early_exit``.
    exit_rule: Annotated[str, OneOf(EXIT_RULES, RENAMED_EXIT_RULES)] = "none"
    exit_layer: Annotated[int, Range(1, MAX_TOKENS)] | None = None  # rule "fixed" only: layers that compute every token
    # confidence rules only; None: the threshold calibrated for ``exit_tolerance``
    exit_threshold: Annotated[float, Range(0, 2)] | None = None
    exit_tolerance: PositiveShare | None = None  # accepted relative increase of perplexity; None: 0.01
    # decay of the threshold over the output, for rules that test each token; None: constant
    exit_decay: Annotated[float, Range(0, 1000)] | None = DECAY

    # number of beams; None: sampling instead of beam search
    beam_width: Annotated[int, Range(1, MAX_SEQUENCES)] | None = None
    length_penalty: Annotated[float, Range(-1e3, 1e3)] = 1.0  # beam score = log-probability / length ** length_penalty
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        check_fields(self, "sampling setting", InvalidRequest, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        """Yield every setting that does not go with the others."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            yield Fault("min_tokens", "0 to max_tokens")
        if self.acceptance != "typical":
            if self.posterior_threshold != 0.09:
                yield Fault("posterior_threshold", "0.09 unless acceptance is typical")
            if self.posterior_alpha != 0.3:
                yield Fault("posterior_alpha", "0.3 unless acceptance is typical")
        if self.is_guided and self.ignore_eos:
            yield Fault("ignore_eos", "False with structured_outputs and thinking_token_budget, which count on end tokens")
        yield from self._beam_conflicts()
        yield from self._exit_conflicts()

    def _beam_conflicts(self) -> Iterator[Fault]:
        if self.beam_width is None:
            if self.length_penalty != 1.0:
                yield Fault("length_penalty", "1.0 without beam_width")
            if self.early_stopping is not False:
                yield Fault("early_stopping", "False without beam_width")
            return
        if self.beam_width < self.n:
            yield Fault("beam_width", f"None or n to {MAX_SEQUENCES}")
        if self.temperature not in (0, 1):
            yield Fault("temperature", "0 or 1 with beam_width (beam search does not sample)")
        if self.top_k is not None or (self.top_p, self.min_p, self.typical_p) != (1.0, 0.0, 1.0):
            yield Fault("beam_width", "None with top_k, top_p, min_p or typical_p (beam search does not sample)")
        if self.exit_rule != "none":
            yield Fault("exit_rule", "none with beam_width")

    def _exit_conflicts(self) -> Iterator[Fault]:
        if self.exit_rule == "fixed":
            if self.exit_layer is None:
                yield Fault("exit_layer", "from 1 with exit_rule fixed")
        elif self.exit_layer is not None:
            yield Fault("exit_layer", "None unless exit_rule is fixed")
        if self.exit_rule not in (*TOKEN_CRITERIA, *REQUEST_CRITERIA):
            for name in ("exit_threshold", "exit_tolerance"):
                if getattr(self, name) is not None:
                    yield Fault(name, "None unless exit_rule is a confidence rule")
        if self.exit_tolerance is not None and self.exit_threshold is not None:
            yield Fault("exit_tolerance", "None with exit_threshold")
        if self.exit_decay != DECAY:
            if self.exit_rule not in TOKEN_CRITERIA:
                yield Fault("exit_decay", f"{DECAY} unless exit_rule tests each token")
            if self.exit_threshold is None:
                yield Fault("exit_decay", f"{DECAY} without exit_threshold, because calibrated thresholds hold for it only")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_seedless(self) -> bool:
        """Whether no random number decides the output."""
        return self.greedy or self.beam_width is not None

    @property
    def is_guided(self) -> bool:
        """Whether the tokens so far decide which tokens may come next, by more than single settings."""
        return self.structured_outputs is not None or self.thinking_token_budget is not None

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
        if not isinstance(values, Mapping):
            raise InvalidRequest(
                "sampling settings are not named values", got=show(values), allowed="a mapping from names to values"
            )
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InvalidRequest("unknown sampling setting", got=show(name), remedy=nearest(name, names))
        return cls(**values)
