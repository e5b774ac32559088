"""Scoring of texts: where a continuation begins, which choice is best, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.test_scoring import CONTINUATIONS, PROMPT, SETTINGS, as_input, close, ids, recorded_plans, reference
from tests.tiny_models import tiny_checkpoint, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hasten import LLM, InvalidRequest, SamplingParams
from hasten.core.errors import PromptTooLong
from hasten.core.output import ScoreOutput


@pytest.fixture(scope="module")
def text_llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Return a model with a word tokenizer: token i is the word wi, and w2 ends a text."""
    folder = tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("text"))
    word_tokenizer(101).save_pretrained(folder)
    return LLM(str(folder), **SETTINGS)


def test_a_continuation_begins_where_the_prompt_ends(text_llm: LLM) -> None:
    """It is tokenised with the prompt, or alone where a token would span the border."""
    token_ids = [token for token in PROMPT if token // 10 != 2]
    prompt = " ".join(f"w{token}" for token in token_ids)
    scores = text_llm.score(prompt, [" w7 w8", "w7 w8", {"token_ids": [7, 8]}])
    assert [score.token_ids for score in scores] == [(7, 8)] * 3
    assert [score.text for score in scores] == [" w7 w8", "w7 w8", None]
    assert len({score.logprobs for score in scores}) == 1
    assert close(scores[0].logprobs, reference("llama-gqa", tuple(token_ids), (7, 8)))
    assert text_llm.score({"prompt_token_ids": token_ids}, ["w7 w8"])[0].logprobs == scores[0].logprobs


def test_subwords_depend_on_the_prompt(tmp_path: Path) -> None:
    """The tokenizer has other tokens inside a word than at its start, and starts every text with w1."""
    words = {f"w{i}": i for i in range(51)} | {"##7": 95, "7": 96, "0": 97}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    folder = tiny_checkpoint("llama-gqa", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    scores = LLM(str(folder), **SETTINGS).score("w9 w5", ["7", "7 w6", " 7", "0"])
    assert [score.token_ids for score in scores] == [(95,), (95, 6), (96,), (97,)]  # w50 would be one token
    for score in scores:
        assert close(score.logprobs, reference("llama-gqa", (1, 9, 5), score.token_ids))


def test_the_best_choice_has_the_highest_mean_or_total(text_llm: LLM) -> None:
    choices = as_input([ids((2, i), 1 + 2 * i) for i in range(5)])
    scores = tuple(text_llm.score("w5 w6", choices))
    for normalize, compared in (("mean", [s.mean for s in scores]), ("sum", [s.total for s in scores])):
        choice = text_llm.choose("w5 w6", choices, normalize=normalize)
        assert choice.scores == scores
        assert choice.index == compared.index(max(compared)) and choice.text is None
        weights = [math.exp(value) for value in compared]
        assert choice.probabilities == pytest.approx([weight / sum(weights) for weight in weights])
    assert text_llm.choose("w5 w6", choices).index == 4
    assert text_llm.choose("w5 w6", choices, normalize="sum").index == 0
    assert text_llm.choose("w5 w6", ["w7", "w7"]) == text_llm.choose("w5 w6", ["w7", "w7"], normalize="sum")
    assert text_llm.choose("w5 w6", ["w7", "w7"]).index == 0
    (certain,) = text_llm.choose("w5 w6", ["w7"]).probabilities
    assert certain == 1.0 and text_llm.choose("w5 w6", ["w7"]).text == "w7"


def test_outputs_are_plain_data() -> None:
    score = ScoreOutput(text=None, token_ids=(3, 4), logprobs=(-1.0, -2.0))
    assert (score.total, score.mean) == (-3.0, -1.5)
    assert ScoreOutput(**dataclasses.asdict(score)) == score


# ---------------------------------------------------------------- refused requests


def test_invalid_scoring_requests_are_refused_and_hold_no_blocks(text_llm: LLM, tiny: Callable[[str], Path]) -> None:
    prompt, continuations = {"prompt_token_ids": PROMPT}, as_input(CONTINUATIONS[:2])
    without_tokenizer = LLM(str(tiny("llama-gqa")), **SETTINGS)
    cases: list[tuple[LLM, Any, str]] = [
        (text_llm, lambda llm: llm.score("w5", []), r"no continuations.*at least one"),
        (text_llm, lambda llm: llm.choose("w5", []), r"no choices"),
        (text_llm, lambda llm: llm.score("w5", "w6"), r"not a list: got str"),
        (
            text_llm,
            lambda llm: llm.score("w5", ["w6", "", " ", "w7"]),
            r"2 of the continuations.*got continuations\[1\], continuations\[2\];",
        ),
        (text_llm, lambda llm: llm.choose("w5", as_input([[]])), r"1 of the choices are empty.*got choices\[0\];"),
        (text_llm, lambda llm: llm.score("w5", [[6, 7]]), r"not a continuation.*token_ids"),
        (text_llm, lambda llm: llm.score("w5", [{"token_ids": ["w6"]}]), r"not whole numbers"),
        (text_llm, lambda llm: llm.score("w5", as_input([[101, 5], [-1]])), r"2 token ids.*-1, 101; allowed: 0 to 100"),
        (text_llm, lambda llm: llm.score("w5", ["w6 \ud800"]), r"not Unicode"),
        (text_llm, lambda llm: llm.score("w5", ["w6"], cache_salt=3), r"cache_salt"),
        (text_llm, lambda llm: llm.score("", ["w6"]), r"prompt is empty"),
        (text_llm, lambda llm: llm.choose("w5", ["w6"], normalize="maen"), r"'maen'.*'mean'"),
        (text_llm, lambda llm: llm.score(prompt, continuations, SamplingParams(exit_rule="entropy")), r"no trained exits.*entropy"),
        (without_tokenizer, lambda llm: llm.score(prompt, ["w6"]), r"no tokenizer.*token_ids"),
        (
            without_tokenizer,
            lambda llm: llm.score(prompt, continuations, SamplingParams(exit_rule="fixed", exit_layer=9)),
            r"exit_layer=9; allowed: 1 to 3",
        ),
    ]
    cases += [
        (
            without_tokenizer,
            lambda llm, rule=rule: llm.score(prompt, continuations, SamplingParams(exit_rule=rule)),
            rf"exit_rule='{rule}'.*entropy",
        )
        for rule in ("softmax", "saturation", "classifier", "token_table")
    ]
    for llm, call, message in cases:
        with recorded_plans(llm) as plans, pytest.raises(InvalidRequest, match=message):
            call(llm)
        assert plans == []
        llm.engine.scheduler.kv.check()


def test_prompt_and_continuation_must_fit_the_context(text_llm: LLM) -> None:
    prompt = {"prompt_token_ids": PROMPT}
    with pytest.raises(PromptTooLong, match=r"22 \+ 75 = 97 tokens; allowed: up to 96"):
        text_llm.score(prompt, as_input([[5], [5] * 75]))
    assert len(text_llm.score(prompt, as_input([[5] * 74]))[0].logprobs) == 74
