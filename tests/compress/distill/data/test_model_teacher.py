"""The demo as a teacher: its texts and choices are those of the model, and shared prefixes are computed once."""

from __future__ import annotations

import re

import pytest

from hasten import LLM
from hasten.compress.distill.data.model_teacher import ModelTeacher
from hasten.compress.distill.data.text_teacher import LabelRequest, TextRequest
from hasten.core.sampling_params import SamplingParams

SHARED = "# Every function below has a docstring that says what it returns, and no other comment.\n\n" * 2


def test_texts_are_those_of_the_model(demo: LLM) -> None:
    messages = ({"role": "user", "content": "Write a class."},)
    params = [SamplingParams(seed=i, n=2, max_tokens=6, logprobs=0) for i in range(4)]
    prompts = ["def a(", messages, {"prompt_token_ids": [5, 6, 7]}, "class B"]
    found = ModelTeacher(demo).write([TextRequest(*each) for each in zip(prompts, params, strict=True)])
    for texts, prompt, setting in zip(found, prompts, params, strict=True):
        ask = demo.chat if isinstance(prompt, tuple) else demo.generate
        (expected,) = ask(list(prompt) if isinstance(prompt, tuple) else prompt, setting, use_tqdm=False)
        for text, completion in zip(texts, expected.outputs, strict=True):
            assert (text.text, text.finish_reason) == (completion.text, "length") and text.is_cut
            logprobs = [token.logprob for token in completion.logprobs or ()]
            assert text.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs)) and text.num_tokens == len(logprobs)


def test_a_text_becomes_a_message_with_chat(demo: LLM) -> None:
    request = TextRequest("Write a class.", SamplingParams(seed=1, max_tokens=8))
    ((text,),) = ModelTeacher(demo, chat=True).write([request])
    (expected,) = demo.chat([{"role": "user", "content": "Write a class."}], request.params, use_tqdm=False)
    assert text.text == expected.outputs[0].text
    assert ModelTeacher(demo, chat=True).identity != ModelTeacher(demo).identity


def test_choices_are_those_of_the_model(demo: LLM) -> None:
    labels = ("1", "2", "10")
    plain, spaced = ModelTeacher(demo).choose([LabelRequest("Score:", labels), LabelRequest("Score:\n", labels)])
    expected = demo.choose("Score:", [" 1", " 2", " 10"], normalize="sum").probabilities
    assert plain == pytest.approx(expected)
    assert spaced == pytest.approx(demo.choose("Score:\n", list(labels), normalize="sum").probabilities)
    (chat,) = ModelTeacher(demo, chat=True).choose([LabelRequest("Score:", labels)])
    ids = demo.tokenizer.apply_chat_template([{"role": "user", "content": "Score:"}])
    expected = demo.choose({"prompt_token_ids": ids}, list(labels), normalize="sum").probabilities
    assert chat == pytest.approx(expected) and sum(chat) == pytest.approx(1)


def test_shared_prefixes_are_computed_once(demo: LLM) -> None:
    demo.reset_prefix_cache()
    teacher = ModelTeacher(demo)
    requests = [TextRequest(f"{SHARED}def f{i}(", SamplingParams(seed=i, max_tokens=4)) for i in range(6)]
    teacher.write(requests)
    figures = teacher.figures
    num_shared = len(demo.tokenizer.encode(SHARED)) // 16 * 16
    assert figures.num_requests == 6 and num_shared > 16
    assert 5 * num_shared <= figures.num_cached_tokens < figures.num_prompt_tokens
    assert figures.num_output_tokens == 24 and figures.seconds > 0
    assert re.fullmatch(
        r"6 requests \| [\d,]+ prompt tokens \(\d+% from the prefix cache\) \| 24 output tokens in [\d.]+ s, [\d,.]+ tokens/s",
        str(figures),
    )


def test_only_what_fits_is_fitting(demo: LLM) -> None:
    teacher = ModelTeacher(demo)
    ids = [5] * 500
    for max_tokens, fits in ((12, True), (13, False)):
        assert teacher.fits(TextRequest({"prompt_token_ids": ids}, SamplingParams(max_tokens=max_tokens))) is fits
    assert not teacher.fits(TextRequest("x " * 600, SamplingParams()))
    assert teacher.fits(LabelRequest("Score:", ("1", "2"))) and not teacher.fits(LabelRequest("x " * 600, ("1", "2")))
