"""Options override the preset, it overrides the checkpoint, and each setting records its origin."""

import pytest

from hasten.cli.sampling_options import merge_settings
from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.core.sampling_params import SamplingParams

CHECKPOINT = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def test_the_checkpoint_provides_the_defaults():
    settings = merge_settings(CHECKPOINT, None, {})
    assert settings.params == CHECKPOINT
    assert settings.origins == dict.fromkeys(("temperature", "top_k", "top_p"), "checkpoint")


def test_options_override_the_preset_and_the_preset_the_checkpoint():
    settings = merge_settings(CHECKPOINT, "balanced", {"top_p": 0.5, "seed": 3})
    assert (settings.params.temperature, settings.params.top_k, settings.params.top_p) == (0.7, 20, 0.5)
    assert settings.origins == {"temperature": "preset balanced", "top_k": "checkpoint", "top_p": "option", "seed": "option"}


def test_a_file_overrides_the_preset_and_options_override_the_file():
    settings = merge_settings(CHECKPOINT, "balanced", {"seed": 3}, {"top_p": 0.5, "seed": 1})
    assert (settings.params.temperature, settings.params.top_k, settings.params.top_p, settings.params.seed) == (0.7, 20, 0.5, 3)
    assert settings.origins == {"temperature": "preset balanced", "top_k": "checkpoint", "top_p": "file", "seed": "option"}


def test_a_beam_width_of_a_file_makes_a_beam_search():
    settings = merge_settings(CHECKPOINT, None, {}, {"beam_width": 4, "length_penalty": 0.8})
    assert settings.params == SamplingParams(beam_width=4, length_penalty=0.8)


def test_beam_search_ignores_the_sampling_settings_of_the_checkpoint():
    settings = merge_settings(CHECKPOINT, None, {"beam_width": 4})
    assert settings.params == SamplingParams(beam_width=4)
    assert settings.origins == {"beam_width": "option"}
    with pytest.raises(InvalidRequest, match="beam"):
        merge_settings(CHECKPOINT, None, {"beam_width": 4, "top_p": 0.5})


def test_every_preset_is_valid_on_top_of_a_checkpoint():
    from hasten.sampling.presets import PRESETS

    for name, preset in PRESETS.items():
        params = merge_settings(CHECKPOINT, name, {}).params
        assert {field: getattr(params, field) for field in preset.settings} == preset.settings


def test_an_unknown_preset_offers_the_nearest():
    with pytest.raises(InvalidOption, match="Did you mean 'creative'"):
        merge_settings(CHECKPOINT, "creativ", {})
