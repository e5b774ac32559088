"""The fields of ``SamplingParams`` as command options, and the origin of each setting of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from hasten.cli.options import OptionGroup, OptionValues
from hasten.core.errors import clip
from hasten.core.sampling_params import SamplingParams

HELP = {
    "max_tokens": "Maximum output tokens; as many as fit the context if left out.",
    "min_tokens": "Minimum output tokens before a stop token or stop string ends the output.",
    "temperature": "0 is greedy decoding; higher is more random.",
    "top_k": "Sample among the K most likely tokens.",
    "top_p": "Sample among the most likely tokens whose probabilities add up to this.",
    "min_p": "Drop tokens less likely than this share of the most likely token.",
    "typical_p": "Locally typical sampling: keep tokens of near-average surprise, up to this probability.",
    "repetition_penalty": "Above 1, tokens of prompt and output get less likely.",
    "presence_penalty": "Lower the logits of tokens in the output, once per token; -2 to 2.",
    "frequency_penalty": "Lower the logits of tokens in the output, once per occurrence; -2 to 2.",
    "no_repeat_ngram_size": "No sequence of this many tokens occurs twice.",
    "logit_bias": "Add VALUE (-100 to 100) to the logit of token ID.",
    "bad_words": "A text that must not occur.",
    "bad_words_ids": "A sequence of token ids that must not occur.",
    "allowed_token_ids": "Sample among these tokens only.",
    "thinking_token_budget": "Close the model's thought after this many tokens, and go on to the answer.",
    "seed": "Random seed; the same seed gives the same output, and every output reports its seed.",
    "n": "Outputs per prompt.",
    "stop": "A stop string, which ends the output.",
    "stop_token_ids": "A stop token, which ends the output.",
    "ignore_eos": "Continue after the end-of-sequence token.",
    "include_stop_str_in_output": "Keep the stop string in the output.",
    "skip_special_tokens": "Leave special tokens out of the text.",
    "logprobs": "Report log-probabilities of the sampled token and of this many alternatives, 0 to 20 (with --json).",
    "acceptance": "Acceptance of draft tokens: exact (tokens of plain decoding), rejection (rejection sampling, same distribution) "
    "or typical (lossy).",
    "posterior_threshold": "With typical acceptance: accept a draft token above min(threshold, alpha * exp(-entropy)).",
    "posterior_alpha": "With typical acceptance: the alpha of the same formula.",
    "exit_rule": "Early exit, which is lossy: fixed (after --exit-layer); softmax, saturation or classifier (confidence per "
    "token); entropy (confidence per request); token_table or prompt_hash (calibrated tables).",
    "exit_layer": "With --exit-rule fixed: number of layers that compute every token.",
    "exit_threshold": "With a confidence rule: the confidence that allows an exit; the calibrated threshold if left out.",
    "exit_tolerance": "With a confidence rule: use the threshold calibrated for this increase of perplexity; 0.01 if left out.",
    "exit_decay": "With --exit-threshold of a per-token rule: how fast the threshold falls as the output grows.",
    "beam_width": "Beam search with this many beams instead of sampling.",
    "length_penalty": "A beam's score is its log-probability over length to this power.",
    "early_stopping": "When beam search ends.",
}

_MAX_SHOWN = 400  # characters of a value: a schema has many more

SAMPLING = OptionGroup("sampling", "Sampling", SamplingParams, HELP)

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Settings for a purpose, such as creative; see hasten presets. Options override it."
    ),
]
ParamsOption = Annotated[
    str | None,
    typer.Option(
        "--params", metavar="FILE", help="Settings from a YAML or JSON file; they override --preset, and options override them."
    ),
]

# Beam search does not sample, so it ignores the sampling settings that a checkpoint recommends.
BEAM_SEARCH_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True)
class Settings:
    """The sampling parameters of a request, and the origin of each one that is not hasten's default."""

    params: SamplingParams
    origins: Mapping[str, str]

    def __str__(self) -> str:
        values = {name: clip(repr(getattr(self.params, name)), _MAX_SHOWN) for name in self.origins}
        shown = [f"{name}={values[name]} ({origin})" for name, origin in self.origins.items()]
        return ", ".join(shown) or "all defaults"


def read_params(file: str | None) -> OptionValues:
    """Return the settings of a file of ``--params``, none without a file. Raises ``InvalidOption``."""
    if file is None:
        return {}
    from hasten.entrypoints.params_file import read_params_file

    return read_params_file(file)


def merge_settings(
    checkpoint: SamplingParams, preset_name: str | None, options: OptionValues, file_values: OptionValues | None = None
) -> Settings:
    """Return the merged settings.

    Options override the file of ``--params``, which overrides the preset, which overrides the checkpoint's
    ``generation_config.json``.
    """
    preset: Mapping[str, Any] = {}
    if preset_name is not None:
        from hasten.sampling.presets import preset as find_preset

        preset = find_preset(preset_name)
    from_file = file_values or {}
    values = {**preset, **from_file, **options}
    defaults = SamplingParams()
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    origins = {name: "checkpoint" for name in names if getattr(checkpoint, name) != getattr(defaults, name)}
    if values.get("beam_width") is not None:
        values = {**BEAM_SEARCH_DEFAULTS, **values}
        origins = {name: origin for name, origin in origins.items() if name not in BEAM_SEARCH_DEFAULTS}
    origins |= dict.fromkeys(preset, f"preset {preset_name}") | dict.fromkeys(from_file, "file") | dict.fromkeys(options, "option")
    return Settings(checkpoint.replace(**values), origins)
