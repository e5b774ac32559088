"""Advice: the field's order, and never a value that is set already, out of range or without effect."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quality.diagnosis.labelled_outputs import OUTPUTS, observed

from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.quality.diagnosis.advice import advise
from hasten.quality.diagnosis.diagnose import diagnose, diagnose_prompts
from hasten.quality.diagnosis.finding import Advice, Fault
from hasten.quality.diagnosis.observed import Measurement, ObservedOutput

ORDER = {
    **dict.fromkeys(("temperature",), 0),
    **dict.fromkeys(("top_k", "top_p", "min_p"), 1),
    **dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size"), 2),
    **dict.fromkeys(("max_tokens", "min_tokens", "stop", "bad_words", "length_penalty", "ignore_eos", "max_model_len"), 3),
}
LOOP = Measurement(value=0.9, is_fault=True, kind="loop", offset=12, unit="token")
FLAT = Measurement(value=7.0, is_fault=True, kind="flat", offset=0, unit="token")


def followed(fault: Fault, found: Measurement, params: SamplingParams) -> list[tuple[str, Any]]:
    """Return the advice of one run after another, in which each is followed and none helps."""
    steps: list[tuple[str, Any]] = []
    while (advice := advise(fault, found, ObservedOutput(text="x" * 400, token_ids=[1] * 100, params=params))) is not None:
        steps.append((advice.parameter, advice.value))
        params = params.replace(**{advice.parameter: advice.value})
        assert len(steps) < 20
    return steps


def test_a_loop_is_met_with_temperature_then_top_k_and_top_p_then_penalties_then_limits() -> None:
    steps = followed("repetition", LOOP, SamplingParams(temperature=0.2, top_k=10, top_p=0.5))
    assert steps == [
        ("temperature", 0.8),
        ("top_k", 50),
        ("top_p", 0.95),
        ("repetition_penalty", 1.1),
        ("frequency_penalty", 0.5),
        ("no_repeat_ngram_size", 4),
        ("no_repeat_ngram_size", 3),
        ("max_tokens", 12),
    ]
    assert [ORDER[name] for name, _ in steps] == sorted(ORDER[name] for name, _ in steps)


def test_a_fair_temperature_is_left_alone() -> None:
    assert followed("repetition", LOOP, SamplingParams(temperature=0.7))[0] == ("repetition_penalty", 1.1)


def test_beams_are_met_with_what_beam_search_has() -> None:
    names = [name for name, _ in followed("repetition", LOOP, SamplingParams(temperature=0, beam_width=4))]
    assert names[0] == "no_repeat_ngram_size"
    assert not {"temperature", "top_k", "top_p"} & set(names)


def test_greedy_decoding_is_not_cut_by_top_k_or_top_p() -> None:
    assert followed("mixed_scripts", Measurement(value=1, is_fault=True, kind="replaced"), SamplingParams(temperature=0)) == []


def test_a_flat_distribution_is_cooled_and_then_cut() -> None:
    assert followed("degenerate", FLAT, SamplingParams(temperature=2.0)) == [
        ("temperature", 0.7),
        ("top_k", 50),
        ("top_p", 0.9),
        ("min_p", 0.05),
        ("temperature", 0.3),
    ]


def test_a_penalty_far_above_the_usual_range_is_lowered_first() -> None:
    assert followed("degenerate", FLAT, SamplingParams(repetition_penalty=2.5))[0] == ("repetition_penalty", 1.1)
    assert followed("degenerate", FLAT, SamplingParams(repetition_penalty=2.5, temperature=2))[0] == ("temperature", 0.7)


@pytest.mark.parametrize(
    "known, params, advice",
    [
        ({"text": "It ra", "finish_reason": "length"}, {"max_tokens": 50}, Advice("max_tokens", 200, 50)),
        ({"text": "It ra", "finish_reason": "length"}, {}, Advice("max_model_len")),
        (
            {"text": "```\nx\n", "finish_reason": "stop", "stop_reason": "}"},
            {"stop": ("}", "END")},
            Advice("stop", ("END",), ("}", "END")),
        ),
        ({"text": "", "finish_reason": "stop"}, {"stop": ("\n",)}, Advice("stop", (), ("\n",))),
        ({"text": "", "finish_reason": "stop"}, {}, Advice("min_tokens", 32, 0)),
        ({"text": "", "finish_reason": "stop"}, {"max_tokens": 5}, Advice("max_tokens", 32, 5)),
        ({"text": "Hi.</s> more", "finish_reason": "stop"}, {"ignore_eos": True}, Advice("ignore_eos", False, True)),
        ({"text": "Hi.</s> more", "finish_reason": "stop"}, {}, Advice("stop", ("</s>",), ())),
        ({"text": "cafÃ©"}, {}, Advice("encoding")),
        (
            {"text": " ".join(map(str, range(50))), "prompt": "In at most 9 words.", "finish_reason": "stop"},
            {"beam_width": 4},
            Advice("length_penalty", 0.5, 1.0),
        ),
    ],
)
def test_other_limits(known: dict[str, Any], params: dict[str, Any], advice: Advice) -> None:
    (finding,) = diagnose(ObservedOutput(params=SamplingParams(**params), **known))
    assert finding.advice == advice


def test_prompts_are_to_be_reordered() -> None:
    rules = "Answer politely and briefly in the language of the question, please. " * 3
    finding = diagnose_prompts([f"{name}: {rules}" for name in ("Ana", "Bo", "Cem")])
    assert finding is not None and finding.advice == Advice("prompt")
    assert finding.advice_sentence("zh").startswith("把提示中共有的部分放在前面")


PARAMS = st.builds(
    dict,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([None, 5, 50]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 1.2, 3.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, 1.5]),
    no_repeat_ngram_size=st.sampled_from([None, 3, 4, 9]),
    min_tokens=st.sampled_from([0, 4]),
    max_tokens=st.sampled_from([None, 16, 2**31 - 1]),
)


@settings(max_examples=60, deadline=None)
@given(PARAMS, st.booleans())
def test_advice_changes_valid_settings_into_other_valid_ones_and_ends(values: dict[str, Any], beams: bool) -> None:
    if beams:
        values |= {"temperature": 0.0, "top_k": None, "top_p": 1.0, "beam_width": 4}
    params = SamplingParams(**values)
    faults: tuple[tuple[Fault, Measurement], ...] = (("repetition", LOOP), ("degenerate", FLAT))
    for fault, found in faults:
        for name, value in followed(fault, found, params):
            assert not (beams and name in ("temperature", "top_k", "top_p", "min_p"))
            assert value is not None


def test_every_bad_output_gets_advice_that_is_not_set_already() -> None:
    for row in OUTPUTS:
        if "prompts" in row:
            continue
        output = observed(row)
        for finding in diagnose(output):
            assert finding.advice is not None, row["id"]
            if finding.advice.is_sampling_setting:
                assert getattr(output.params, finding.advice.parameter) == finding.advice.now != finding.advice.value


def test_what_a_form_demands_is_no_fault() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="yes|0{40}"), max_tokens=64)
    for text in ("yes", "0" * 40):
        output = ObservedOutput(text=text, prompt="Write 200 words about the sea.", finish_reason="stop", params=params)
        assert diagnose(output) == ()
        plain = diagnose(dataclasses.replace(output, params=SamplingParams(max_tokens=64)))
        assert [finding.fault for finding in plain][:1] in (["too_short"], ["repetition"])
        cut = diagnose(dataclasses.replace(output, finish_reason="length"))
        assert cut and all(finding.advice is None or finding.advice.parameter != "min_tokens" for finding in cut)
