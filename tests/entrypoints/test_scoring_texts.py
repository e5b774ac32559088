"""What a caller writes and gets: where a continuation begins, which choice is taken, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.entrypoints.test_scoring import ANSWERS, PROMPT, SETTINGS, close, given, ids, watched, whole
from tests.tiny_models import tiny_checkpoint, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hasten import LLM, InvalidRequest, SamplingParams
from hasten.core.errors import PromptTooLong
from hasten.core.score_output import ScoreOutput


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Token i is the word wi; w2 ends a text, and is found within longer words too."""
    folder = tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("spoken"))
    word_tokenizer(101).save_pretrained(folder)
    return LLM(str(folder), **SETTINGS)


def test_a_continuation_begins_where_the_prompt_ends(spoken: LLM) -> None:
    """Read with the prompt, and alone where a token would span the border."""
    spelt = [token for token in PROMPT if token // 10 != 2]
    prompt = " ".join(f"w{token}" for token in spelt)
    scores = spoken.score(prompt, [" w7 w8", "w7 w8", {"token_ids": [7, 8]}])
    assert [score.token_ids for score in scores] == [(7, 8)] * 3
    assert [score.text for score in scores] == [" w7 w8", "w7 w8", None]
    assert len({score.logprobs for score in scores}) == 1
    assert close(scores[0].logprobs, whole("llama-gqa", tuple(spelt), (7, 8)))
    assert spoken.score({"prompt_token_ids": spelt}, ["w7 w8"])[0].logprobs == scores[0].logprobs


def test_pieces_of_words_are_read_in_their_place(tmp_path: Path) -> None:
    """A tokenizer that tells the inside of a word from its beginning, and begins every text with w1."""
    words = {f"w{i}": i for i in range(51)} | {"##7": 95, "7": 96, "0": 97}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    folder = tiny_checkpoint("llama-gqa", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    scores = LLM(str(folder), **SETTINGS).score("w9 w5", ["7", "7 w6", " 7", "0"])
    assert [score.token_ids for score in scores] == [(95,), (95, 6), (96,), (97,)]  # w50 would be one token
    for score in scores:
        assert close(score.logprobs, whole("llama-gqa", (1, 9, 5), score.token_ids))


def test_the_likeliest_is_chosen_by_token_or_as_a_whole(spoken: LLM) -> None:
    choices = given([ids((2, i), 1 + 2 * i) for i in range(5)])
    scores = tuple(spoken.score("w5 w6", choices))
    for normalize, compared in (("mean", [s.mean for s in scores]), ("sum", [s.total for s in scores])):
        choice = spoken.choose("w5 w6", choices, normalize=normalize)
        assert choice.scores == scores
        assert choice.index == compared.index(max(compared)) and choice.text is None
        weights = [math.exp(value) for value in compared]
        assert choice.probabilities == pytest.approx([weight / sum(weights) for weight in weights])
    assert spoken.choose("w5 w6", choices).index == 4
    assert spoken.choose("w5 w6", choices, normalize="sum").index == 0
    assert spoken.choose("w5 w6", ["w7", "w7"]) == spoken.choose("w5 w6", ["w7", "w7"], normalize="sum")
    assert spoken.choose("w5 w6", ["w7", "w7"]).index == 0
    (sure,) = spoken.choose("w5 w6", ["w7"]).probabilities
    assert sure == 1.0 and spoken.choose("w5 w6", ["w7"]).text == "w7"


def test_outputs_are_plain_data() -> None:
    score = ScoreOutput(text=None, token_ids=(3, 4), logprobs=(-1.0, -2.0))
    assert (score.total, score.mean) == (-3.0, -1.5)
    assert ScoreOutput(**dataclasses.asdict(score)) == score


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_scored_is_refused_and_holds_nothing(spoken: LLM, tiny: Callable[[str], Path]) -> None:
    prompt, answers = {"prompt_token_ids": PROMPT}, given(ANSWERS[:2])
    bare = LLM(str(tiny("llama-gqa")), **SETTINGS)
    cases: list[tuple[LLM, Any, str]] = [
        (spoken, lambda llm: llm.score("w5", []), r"no continuations.*at least one"),
        (spoken, lambda llm: llm.choose("w5", []), r"no choices"),
        (spoken, lambda llm: llm.score("w5", "w6"), r"not a list: got str"),
        (
            spoken,
            lambda llm: llm.score("w5", ["w6", "", " ", "w7"]),
            r"2 of the continuations.*got continuations\[1\], continuations\[2\];",
        ),
        (spoken, lambda llm: llm.choose("w5", given([[]])), r"1 of the choices are empty.*got choices\[0\];"),
        (spoken, lambda llm: llm.score("w5", [[6, 7]]), r"not a continuation.*token_ids"),
        (spoken, lambda llm: llm.score("w5", [{"token_ids": ["w6"]}]), r"not whole numbers"),
        (spoken, lambda llm: llm.score("w5", given([[101, 5], [-1]])), r"2 token ids.*-1, 101; allowed: 0 to 100"),
        (spoken, lambda llm: llm.score("w5", ["w6 \ud800"]), r"not Unicode"),
        (spoken, lambda llm: llm.score("w5", ["w6"], cache_salt=3), r"cache_salt"),
        (spoken, lambda llm: llm.score("", ["w6"]), r"prompt is empty"),
        (spoken, lambda llm: llm.choose("w5", ["w6"], normalize="maen"), r"'maen'.*'mean'"),
        (spoken, lambda llm: llm.score(prompt, answers, SamplingParams(exit_rule="entropy")), r"no trained exits.*entropy"),
        (bare, lambda llm: llm.score(prompt, ["w6"]), r"no tokenizer.*token_ids"),
        (
            bare,
            lambda llm: llm.score(prompt, answers, SamplingParams(exit_rule="fixed", exit_layer=9)),
            r"exit_layer=9; allowed: 1 to 3",
        ),
    ]
    cases += [
        (bare, lambda llm, rule=rule: llm.score(prompt, answers, SamplingParams(exit_rule=rule)), rf"exit_rule='{rule}'.*entropy")
        for rule in ("softmax", "saturation", "classifier", "token_table")
    ]
    for llm, call, message in cases:
        with watched(llm) as plans, pytest.raises(InvalidRequest, match=message):
            call(llm)
        assert plans == []
        llm.engine.scheduler.kv.check()


def test_prompt_and_continuation_have_to_fit_the_context(spoken: LLM) -> None:
    prompt = {"prompt_token_ids": PROMPT}
    with pytest.raises(PromptTooLong, match=r"22 \+ 75 = 97 tokens; allowed: up to 96"):
        spoken.score(prompt, given([[5], [5] * 75]))
    assert len(spoken.score(prompt, given([[5] * 74]))[0].logprobs) == 74
