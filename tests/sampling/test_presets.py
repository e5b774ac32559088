import pytest

from hasten.core.errors import InvalidOption
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.presets import PRESETS, preset


def test_the_presets_are_those_promised_and_valid():
    assert set(PRESETS) == {"creative", "balanced", "deterministic", "qa", "code", "poetry", "long-chat", "translation"}
    for name, entry in PRESETS.items():
        assert SamplingParams(**preset(name)) != SamplingParams(), name
        for language, end in (("en", "."), ("zh", "。")):
            assert "\n" not in entry.explain(language)
            assert entry.explain(language).endswith(end)


@pytest.mark.parametrize(
    "name, field, low, high",
    [
        ("creative", "temperature", 0.8, 1.2),
        ("creative", "top_p", 0.9, 0.95),
        ("balanced", "temperature", 0.7, 0.7),
        ("balanced", "top_p", 0.9, 0.9),
        ("deterministic", "temperature", 0.1, 0.5),
        ("deterministic", "top_k", 10, 50),
        ("qa", "repetition_penalty", 1.05, 1.05),
        ("code", "repetition_penalty", 1.05, 1.05),
        ("poetry", "presence_penalty", 0.3, 0.3),
        ("long-chat", "no_repeat_ngram_size", 3, 4),
        ("translation", "beam_width", 2, 8),
        ("translation", "length_penalty", 0.6, 1.0),
    ],
)
def test_values_lie_in_customary_ranges(name, field, low, high):
    assert low <= preset(name)[field] <= high


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InvalidOption, match="Did you mean 'creative'"):
        preset("creativ")


def test_changing_returned_settings_changes_no_preset():
    preset("balanced")["temperature"] = 5
    assert preset("balanced")["temperature"] == 0.7
