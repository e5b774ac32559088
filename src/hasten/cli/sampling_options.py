"""The fields of ``SamplingParams`` as options, and where each setting of a request comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.cli.options import Given, OptionGroup
from hasten.core.sampling_params import SamplingParams

HELP = {
    "max_tokens": "Most tokens of an answer; as many as the context has room for if left out.",
    "min_tokens": "No end of the answer before this many tokens.",
    "temperature": "0 always takes the likeliest token; higher is more random.",
    "top_k": "Choose among the K likeliest tokens.",
    "top_p": "Choose among the likeliest tokens that together have this probability.",
    "min_p": "Leave out tokens less likely than this share of the likeliest.",
    "typical_p": "Locally typical sampling: tokens near the expected surprise, up to this probability.",
    "repetition_penalty": "Above 1: tokens of prompt and answer get less likely.",
    "presence_penalty": "Lowers tokens that the answer has, once each; -2 to 2.",
    "frequency_penalty": "Lowers tokens that the answer has, per occurrence; -2 to 2.",
    "no_repeat_ngram_size": "No sequence of this many tokens occurs twice.",
    "logit_bias": "Add VALUE (-100 to 100) to the logit of token ID.",
    "bad_words": "A text that must not occur.",
    "bad_words_ids": "A sequence of token ids that must not occur.",
    "allowed_token_ids": "Only these tokens may occur.",
    "seed": "The same seed draws the same answer; every answer reports its seed.",
    "n": "Answers per prompt.",
    "stop": "End the answer where this text would occur.",
    "stop_token_ids": "End the answer at this token.",
    "ignore_eos": "Go on after the end-of-text token.",
    "include_stop_str_in_output": "Keep the stop text in the answer.",
    "skip_special_tokens": "Leave special tokens out of the text.",
    "logprobs": "Report log-probabilities of the chosen token and of this many alternatives, 0 to 20 (with --json).",
    "acceptance": "Which guessed tokens are accepted: exact (what plain decoding draws), rejection (the same distribution), "
    "typical (lossy).",
    "posterior_threshold": "With typical acceptance: a guess passes above min(threshold, alpha * exp(-entropy)).",
    "posterior_alpha": "The alpha of the same.",
    "exit_rule": "When tokens may leave the model early, which is lossy: layer (after --exit-layer), softmax, saturation or "
    "classifier (each token where its state is sure), entropy (the request where its prompt is), tokens or texts (by tables).",
    "exit_layer": "With --exit-rule fixed: how many layers compute every token.",
    "exit_threshold": "With a rule that measures: how sure a state must be; the calibrated threshold if left out.",
    "exit_tolerance": "With a rule that measures: take the threshold calibrated for this increase of perplexity; 0.01 if left out.",
    "exit_decay": "With --exit-threshold of a rule that asks each token: how fast it sinks as the answer grows.",
    "beam_width": "Beam search with this many beams instead of sampling.",
    "length_penalty": "A beam's score is its log-probability over length to this power.",
    "early_stopping": "When beam search ends.",
}

SAMPLING = OptionGroup("sampling", "Sampling", SamplingParams, HELP)

# Beam search does not sample: what a checkpoint recommends for sampling does not apply to it.
WITHOUT_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True)
class Settings:
    """The sampling of a request, and the origin of each setting that is not hasten's default."""

    params: SamplingParams
    origins: Mapping[str, str]

    def __str__(self) -> str:
        return ", ".join(f"{name}={getattr(self.params, name)!r} ({origin})" for name, origin in self.origins.items())


def merge_settings(checkpoint: SamplingParams, preset_name: str | None, given: Given) -> Settings:
    """Options win over the preset, and the preset over the checkpoint's ``generation_config.json``."""
    preset: Mapping[str, Any] = {}
    if preset_name is not None:
        from hasten.sampling.presets import preset as find_preset

        preset = find_preset(preset_name)
    values = {**preset, **given}
    plain = SamplingParams()
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    origins = {name: "checkpoint" for name in names if getattr(checkpoint, name) != getattr(plain, name)}
    if values.get("beam_width") is not None:
        values = {**WITHOUT_SAMPLING, **values}
        origins = {name: origin for name, origin in origins.items() if name not in WITHOUT_SAMPLING}
    origins |= dict.fromkeys(preset, f"preset {preset_name}") | dict.fromkeys(given, "option")
    return Settings(checkpoint.replace(**values), origins)
