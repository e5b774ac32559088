"""Diagnosis of real outputs: ``RequestOutput.diagnose``, and what following the advice does to the measured fault."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tests.exhaustive import repeats

from hasten import LLM, SamplingParams
from hasten.core.output import CompletionOutput, RequestOutput
from hasten.core.result import FinishReason
from hasten.quality.diagnosis.diagnose import DETECTORS
from hasten.quality.diagnosis.observed import ObservedOutput

HELD_OUT = Path(__file__).parents[2] / "src" / "hasten" / "demo" / "heldout.jsonl"
# Settings that bring about a fault, in turn.
BAD_SETTINGS = (
    {"temperature": 0.0, "max_tokens": 80},
    {"temperature": 1.6, "max_tokens": 48},
    {"temperature": 0.7, "top_p": 0.9, "max_tokens": 14},
    {"temperature": 0.0, "beam_width": 3, "max_tokens": 60},
    {"temperature": 1.0, "repetition_penalty": 2.5, "max_tokens": 60},
    {"temperature": 0.2, "top_k": 20, "max_tokens": 80},
    {"temperature": 3.0, "max_tokens": 40},
    {"temperature": 0.5, "ignore_eos": True, "skip_special_tokens": False, "max_tokens": 60},
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=1024, threads=1, kv_cache_memory="64MiB")


def requests(count: int) -> list[tuple[str, SamplingParams]]:
    """Return prompts of held-out texts, each with settings that are likely to go wrong."""
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    found = []
    for number in range(count):
        text = texts[number % len(texts)]
        begin = 97 * (number // len(texts))
        settings = BAD_SETTINGS[number % len(BAD_SETTINGS)]
        logprobs = None if "beam_width" in settings else 5
        found.append((text[begin : begin + 160], SamplingParams(**settings, seed=number, logprobs=logprobs)))
    return found


def test_following_the_advice_lowers_the_measured_fault(llm: LLM) -> None:
    jobs = requests(repeats("advice"))
    outputs = llm.generate([prompt for prompt, _ in jobs], [params for _, params in jobs])
    advised = []
    for (prompt, params), output in zip(jobs, outputs, strict=True):
        findings = output.diagnose(params)
        advice = findings[0].advice if findings else None
        if advice is not None and advice.is_sampling_setting:
            advised.append((findings[0], prompt, params.replace(**{advice.parameter: advice.value})))
    assert len(advised) >= len(jobs) / 2
    again = llm.generate([prompt for _, prompt, _ in advised], [params for _, _, params in advised])
    lowered = []
    for (finding, prompt, params), output in zip(advised, again, strict=True):
        answer = output.outputs[0]
        observed = ObservedOutput(
            text=answer.text,
            prompt=prompt,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs or (),
            finish_reason=answer.finish_reason,
            stop_reason=answer.stop_reason,
            params=params,
        )
        lowered.append(DETECTORS[finding.fault](observed).value < finding.measurement.value)
    counts = Counter((finding.fault, is_lower) for (finding, _, _), is_lower in zip(advised, lowered, strict=True))
    print(f"{sum(lowered)} of {len(lowered)} lowered", dict(counts))
    assert sum(lowered) / len(lowered) >= 0.8


def test_unchanged_settings_lower_nothing(llm: LLM) -> None:
    """Negative control: the same seeds and settings give the same fault."""
    (prompt, params), *_ = requests(1)
    first, second = (llm.generate(prompt, params)[0].diagnose(params) for _ in range(2))
    assert first and [finding.measurement for finding in first] == [finding.measurement for finding in second]


def answer(text: str, index: int = 0, reason: FinishReason = FinishReason.STOP) -> CompletionOutput:
    return CompletionOutput(index=index, text=text, token_ids=(), finish_reason=reason)


def test_each_answer_of_a_request_is_diagnosed_and_the_settings_decide_the_advice() -> None:
    answers = (answer("A good answer."), answer("again and again " * 20, 1), answer("", 2), answer("", 3, FinishReason.ABORT))
    output = RequestOutput(request_id="0", prompt="Say it.", prompt_token_ids=(1,), outputs=answers, finished=True)
    assert [(finding.index, finding.fault) for finding in output.diagnose()] == [(1, "repetition"), (2, "too_short")]
    parameters = [finding.advice.parameter for finding in output.diagnose(SamplingParams(temperature=0)) if finding.advice]
    assert parameters == ["temperature", "min_tokens"]
