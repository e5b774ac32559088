"""Scoring of texts: where a continuation begins, which choice is best, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.entrypoints.test_scoring import CONTINUATIONS, PROMPT, SETTINGS, as_input, close, ids, recorded_plans, reference
from tests.text.test_detokenizer import trained
from tests.text_models import text_checkpoint
from tests.tiny_models import tiny_checkpoint, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

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
    """Spaces at the end of the prompt belong to it, and so does a token that spans the border."""
    token_ids = [token for token in PROMPT if token // 10 != 2]
    prompt = " ".join(f"w{token}" for token in token_ids)
    scores = text_llm.score(prompt, [" w7 w8", {"token_ids": [7, 8]}])
    scores += text_llm.score(prompt + " ", ["w7 w8"])
    assert [score.token_ids for score in scores] == [(7, 8)] * 3
    assert [score.text for score in scores] == [" w7 w8", None, "w7 w8"]
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
    assert [score.token_ids for score in scores] == [(95,), (95, 6), (96,), (50,)]
    for score, before in zip(scores, [(1, 9, 5)] * 3 + [(1, 9)], strict=True):
        assert close(score.logprobs, reference("llama-gqa", before, score.token_ids))


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
    assert text_llm.choose("w5 w6", [" w7", " w7"]) == text_llm.choose("w5 w6", [" w7", " w7"], normalize="sum")
    assert text_llm.choose("w5 w6", [" w7", " w7"]).index == 0
    (certain,) = text_llm.choose("w5 w6", [" w7"]).probabilities
    assert certain == 1.0 and text_llm.choose("w5 w6", [" w7"]).text == " w7"


def test_outputs_are_plain_data() -> None:
    score = ScoreOutput(text=None, token_ids=(3, 4), logprobs=(-1.0, -2.0))
    assert (score.total, score.mean) == (-3.0, -1.5)
    assert ScoreOutput(**dataclasses.asdict(score)) == score


# ---------------------------------------------------------------- subword tokenizers

PARTS = ("the cat", " the", "cat", " ", "  ", "s", "at, the mat", "\n", "好", "中文", " naïve", "é", "def hello", "(name)", "dog.")


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback", "metaspace"])
def subwords(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Tokenizer, Any]:
    """Return a model with such a tokenizer, the tokenizer, and the model in transformers."""
    tokenizer = Tokenizer.from_str(trained(request.param).to_str())
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    folder = text_checkpoint(tokenizer, tmp_path_factory.mktemp(request.param))
    return LLM(str(folder), **SETTINGS), tokenizer, AutoModelForCausalLM.from_pretrained(folder)


def teacher_forced(model: Any, token_ids: list[int], num_prompt_tokens: int) -> list[float]:
    with torch.inference_mode():
        logprobs_TV = model(torch.tensor([token_ids])).logits[0].log_softmax(dim=1)
    return [float(logprobs_TV[i - 1, token_ids[i]]) for i in range(num_prompt_tokens, len(token_ids))]


def test_scores_are_those_of_one_text_cut_after_the_prompts_tokens(subwords: tuple[LLM, Tokenizer, Any]) -> None:
    llm, tokenizer, model = subwords
    rng = random.Random(0)
    for _ in range(40):
        prompt = "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 5))) + rng.choice(("", " ", "  "))
        continuations = ["".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 4))) for _ in range(4)]
        for score, continuation in zip(llm.score(prompt, continuations), continuations, strict=True):
            whole = tokenizer.encode(prompt + continuation).ids
            before = len(whole) - len(score.token_ids)
            assert tuple(whole[before:]) == score.token_ids
            assert close(score.logprobs, teacher_forced(model, whole, before))
            # The cut is where the tokens of the whole text last agree with those of the prompt, without spaces at its end.
            alone = tokenizer.encode(prompt.rstrip(" ")).ids
            assert whole[:before] == alone[:before]
            assert before == min(len(alone), len(whole)) or whole[before] != alone[before]


def test_no_special_token_follows_a_continuation(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(trained("byte-fallback").to_str())
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    llm = LLM(str(text_checkpoint(tokenizer, tmp_path)), **SETTINGS)
    for prompt, continuation in (("the cat", " sat"), ("the cat ", "sat"), ("the", " cat sat")):
        (score,) = llm.score(prompt, [continuation])
        *before, end = tokenizer.encode(prompt + continuation).ids
        assert end == ends[1][1] and score.token_ids == tuple(before[len(before) - len(score.token_ids) :])


def test_spaces_at_the_end_of_a_prompt_are_scored_once(subwords: tuple[LLM, Tokenizer, Any]) -> None:
    llm, tokenizer, _ = subwords
    expected = llm.score("the cat", [" sat on"])[0]
    assert tokenizer.decode(list(expected.token_ids)).endswith("sat on")
    (moved,) = llm.score("the cat ", ["sat on"])
    assert (moved.token_ids, moved.logprobs) == (expected.token_ids, expected.logprobs)
    (doubled,) = llm.score("the cat ", [" sat on"])
    assert doubled.token_ids == llm.score("the cat", ["  sat on"])[0].token_ids != expected.token_ids


def test_a_text_after_token_ids_is_not_the_beginning_of_a_text(subwords: tuple[LLM, Tokenizer, Any]) -> None:
    llm, tokenizer, _ = subwords
    prompt = {"prompt_token_ids": tokenizer.encode("the").ids}
    for text in ("cat", " cat", "\ncat", "\n\n", "  cat", "好", "at the", "."):
        (score,) = llm.score(prompt, [text])
        assert tokenizer.decode([*prompt["prompt_token_ids"], *score.token_ids]) == "the" + text


def test_continuations_share_the_prompt_unless_a_token_spans_the_cut(subwords: tuple[LLM, Tokenizer, Any]) -> None:
    llm = subwords[0]
    llm.reset_prefix_cache()
    with recorded_plans(llm) as plans:
        llm.score("def hello(name): return ", ["the", "cat", "dog", "\n"])
    assert sum(row.start == 0 for plan in plans for row in plan.rows) == 1


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
            lambda llm: llm.score("w5", [" w6", "", " ", " w7"]),
            r"2 of the continuations.*got continuations\[1\], continuations\[2\];",
        ),
        (text_llm, lambda llm: llm.choose("w5", as_input([[]])), r"1 of the choices are empty.*got choices\[0\];"),
        (text_llm, lambda llm: llm.score("w5", [[6, 7]]), r"not a continuation.*token_ids"),
        (text_llm, lambda llm: llm.score("w5", [{"token_ids": ["w6"]}]), r"not whole numbers"),
        (text_llm, lambda llm: llm.score("w5", as_input([[101, 5], [-1]])), r"2 token ids.*-1, 101; allowed: 0 to 100"),
        (text_llm, lambda llm: llm.score("w5", ["w6 \ud800"]), r"not Unicode"),
        (text_llm, lambda llm: llm.score("w5", [" w6"], cache_salt=3), r"cache_salt"),
        (text_llm, lambda llm: llm.score("", ["w6"]), r"prompt is empty"),
        (text_llm, lambda llm: llm.score("w5", [" w7", "w6"]), r"first token goes on in 1 of.*got continuations\[1\]"),
        (text_llm, lambda llm: llm.choose("w5", [" w6"], normalize="maen"), r"'maen'.*'mean'"),
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
