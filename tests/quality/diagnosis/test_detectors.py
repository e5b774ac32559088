"""Each detector against texts whose fault is known by construction."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.quality.diagnosis.asked_length import AskedLength, asked_length
from hasten.quality.diagnosis.degenerate import measure_degenerate
from hasten.quality.diagnosis.diagnose import diagnose, diagnose_prompts
from hasten.quality.diagnosis.mixed_scripts import measure_mixed_scripts
from hasten.quality.diagnosis.observed import ObservedOutput
from hasten.quality.diagnosis.prompt_order import measure_prompt_order
from hasten.quality.diagnosis.repetition import measure_repetition
from hasten.quality.diagnosis.too_long import measure_too_long
from hasten.quality.diagnosis.too_short import measure_too_short
from hasten.quality.diagnosis.truncation import measure_truncation

HELD_OUT = Path(__file__).parents[3] / "src" / "hasten" / "demo" / "heldout.jsonl"


def seen(text: str, **known: Any) -> ObservedOutput:
    return ObservedOutput(text=text, **known)


# ---------------------------------------------------------------- repetition


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 999), min_size=0, max_size=60, unique=True),
    st.lists(st.integers(1000, 1999), min_size=1, max_size=20, unique=True),
    st.integers(0, 3),
)
def test_a_planted_loop_is_found_where_it_begins(before: list[int], loop: list[int], extra: int) -> None:
    """Unique tokens do not repeat, so the planted loop is the only one."""
    repeats = max(5, math.ceil(len(before) / len(loop)), math.ceil(48 / len(loop)))
    tokens = before + loop * repeats + loop[: min(extra, len(loop) - 1)]
    found = measure_repetition(seen("", token_ids=tuple(tokens)))
    assert (found.is_fault, found.kind, found.unit, found.offset) == (True, "loop", "token", len(before))
    assert found.details["period"] == len(loop)
    assert found.value == pytest.approx((len(tokens) - len(before)) / len(tokens))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=300, unique=True))
def test_unique_tokens_do_not_repeat(tokens: list[int]) -> None:
    assert measure_repetition(seen("", token_ids=tuple(tokens))).value == 0


def test_the_share_of_repeated_ngrams_is_that_of_the_formula() -> None:
    """seq-rep-4 is one minus unique n-grams over n-grams."""
    tokens = [index * index % 23 for index in range(150)] + [7, 3, 1]
    ngrams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    odd = [token + 100 * (i // 40) for i, token in enumerate(tokens)]
    found = measure_repetition(seen("", token_ids=tuple(odd)))
    ngrams = [tuple(odd[i : i + 4]) for i in range(len(odd) - 3)]
    assert found.value == pytest.approx(1 - len(set(ngrams)) / len(ngrams))


@pytest.mark.parametrize(
    "text",
    [
        "-" * 400,
        "| --- | --- | --- |\n| 1 | 2 | 3 |\n| 4 | 5 | 6 |\n| 7 | 8 | 9 |",
        "for i in range(3):\n    a[i] = 0\nfor i in range(4):\n    b[i] = 1\nfor i in range(5):\n    c[i] = 2\n",
        "Row, row, row your boat gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
        " ".join(f"w{number}" for number in range(200))
        + " no no no no no no no no no no no no no no no no no no no no. "
        + " ".join(f"v{number}" for number in range(200)),
        "1. one\n2. two\n3. three\n4. four\n5. five\n6. six\n7. seven\n8. eight\n9. nine\n",
    ],
)
def test_rulers_tables_code_and_refrains_are_no_loops(text: str) -> None:
    assert not measure_repetition(seen(text)).is_fault


def test_numbered_lines_that_are_equal_otherwise_are_a_loop() -> None:
    text = "Steps:\n" + "".join(f"{number}. Restart the machine.\n" for number in range(1, 12))
    found = measure_repetition(seen(text))
    assert found.is_fault and found.offset is not None and "Restart" in text[found.offset : found.offset + 30]


# ---------------------------------------------------------------- truncation


@pytest.mark.parametrize(
    "text, reason, kind",
    [
        ("It rained. The river rose over", "length", "sentence"),
        ("他走了。然后他又回来", "length", "sentence"),
        ("print(sorted(names", "length", "bracket"),
        ('{"a": [1, 2', "stop", "bracket"),
        ("See:\n```sh\nls\n", "stop", "fence"),
        ("It rained. It stopped. Then the river rose over the fields and the people of the", None, "sentence"),
        ("It rained. The river rose.", "length", ""),
        ("Quiet rivers", "stop", ""),
        ("See:\n```sh\nls\n```\n", "length", ""),
        ("He laughed :(", "stop", ""),
        ('{"smile": ":("}', "length", ""),
        ("", "length", ""),
    ],
)
def test_cut_texts_are_found_and_complete_ones_are_not(text: str, reason: str | None, kind: str) -> None:
    found = measure_truncation(seen(text, finish_reason=reason))
    assert (found.is_fault, found.kind) == (bool(kind), kind)


@pytest.mark.parametrize("text", ["One is done. Two is cut he", "一句完整。第二句没有"])
def test_the_value_is_the_share_after_the_last_sentence(text: str) -> None:
    begin = max(text.rfind("."), text.rfind("。")) + 1
    begin += len(text[begin:]) - len(text[begin:].lstrip())
    found = measure_truncation(seen(text, finish_reason="length"))
    assert (found.offset, found.value) == (begin, pytest.approx((len(text) - begin) / len(text)))


# ---------------------------------------------------------------- too short, too long


@pytest.mark.parametrize(
    "prompt, asked",
    [
        ("Write at least 300 words about autumn.", AskedLength(300, None, "words")),
        ("Summarise in one sentence of at most 20 words.", AskedLength(None, 20, "words")),
        ("Write a 50-word summary.", AskedLength(50, 50, "words")),
        ("写一篇500字的作文。", AskedLength(500, 500, "characters")),
        ("用一句话概括。", AskedLength(1, 1, "sentences")),
        ("不超过50字。", AskedLength(None, 50, "characters")),
        ("Use these five words in a story.", None),
        ("Explain the meaning of a word.", None),
        ("请解释这两个词的区别。", None),
        (None, None),
    ],
)
def test_the_length_that_a_prompt_asks_for(prompt: str | None, asked: AskedLength | None) -> None:
    assert asked_length(prompt) == asked


@pytest.mark.parametrize(
    "text, prompt, kind",
    [
        ("", None, "empty"),
        (" \n", None, "empty"),
        ("Here are the three reasons:", None, "announcement"),
        ("以下是三个原因：", None, "announcement"),
        ("word " * 40, "Write at least 100 words.", "asked"),
        ("word " * 60, "Write at least 100 words.", ""),
        ("def main():", None, ""),
        ("Yes.", "Is it open?", ""),
    ],
)
def test_outputs_that_stopped_too_early(text: str, prompt: str | None, kind: str) -> None:
    found = measure_too_short(seen(text, prompt=prompt, finish_reason="stop"))
    assert (found.is_fault, found.kind if found.is_fault else "") == (bool(kind), kind)


def test_tokens_without_a_text_are_no_empty_output() -> None:
    assert not measure_too_short(seen("", token_ids=range(16), finish_reason="stop")).is_fault
    assert measure_too_short(seen("", token_ids=range(1), finish_reason="stop")).is_fault


@pytest.mark.parametrize(
    "text, prompt, kind, offset",
    [
        (" Rome.\nQ: And of Spain?\nA: Madrid.", "Q: Capital of France?\nA: Paris.\nQ: Of Italy?\nA:", "turn", 7),
        ("A: Rome.", "Q: Capital of France?\nA: Paris.\nQ: Of Italy?\nA:", "", None),
        ("Yes.<|im_end|>\nNext", None, "marker", 4),
        ("Yes.<|im_end|>\n", None, "", None),
        ('The marker "<|im_end|>" ends a turn.', None, "", None),
        ("word " * 60, "Answer in at most 20 words.", "asked_less", None),
        ("A: hello\nB: hello", "Write a dialogue.", "", None),
        ("Note: it rains.\nNote: it pours.", "Note: be brief.\nWhat is the weather?", "", None),
    ],
)
def test_outputs_that_go_on_after_their_end(text: str, prompt: str | None, kind: str, offset: int | None) -> None:
    found = measure_too_long(seen(text, prompt=prompt, finish_reason="stop"))
    assert (found.is_fault, found.kind if found.is_fault else "") == (bool(kind), kind)
    assert found.offset == offset


# ---------------------------------------------------------------- distributions


def logprobs(*probabilities: float, length: int = 64) -> list[TokenLogprob]:
    top = tuple((token, math.log(p)) for token, p in enumerate(probabilities))
    return [TokenLogprob(0, top[0][1], 1, top)] * length


def test_distributions_near_zero_and_near_uniform_are_faults_and_those_between_are_not() -> None:
    peaked = measure_degenerate(seen("", logprobs=logprobs(0.9999, 0.0001)))
    flat = measure_degenerate(seen("", logprobs=logprobs(1 / 200, 1 / 200)))
    usual = measure_degenerate(seen("", logprobs=logprobs(0.3, 0.2, 0.1)))
    assert (peaked.is_fault, peaked.kind, peaked.value) == (True, "peaked", 1.0)
    assert (flat.is_fault, flat.kind, flat.value) == (True, "flat", pytest.approx(math.log(200)))
    assert (usual.is_fault, usual.value) == (False, pytest.approx(-math.log(0.3)))
    assert not measure_degenerate(seen("text without log-probabilities")).is_fault
    assert not measure_degenerate(seen("", logprobs=logprobs(1 / 200, length=15))).is_fault


def test_a_collapsed_end_is_found_where_it_begins() -> None:
    tokens = logprobs(0.3, 0.2, 0.1, length=40) + logprobs(0.9999, 0.0001, length=60)
    found = measure_degenerate(seen("", logprobs=tokens))
    assert (found.is_fault, found.kind, found.offset, found.value) == (True, "peaked", 40, 0.6)


# ---------------------------------------------------------------- scripts


@pytest.mark.parametrize(
    "text, prompt, kind",
    [
        ("这个 модель 很大，可以处理很多任务。", None, "splice"),
        ("The sоurce is here.", None, "splice"),  # a Cyrillic letter within a Latin word
        ("The budget 预算 was approved on Monday by all members.", None, "splice"),
        ("A bad \ufffd byte.", None, "replaced"),
        ("cut at the end \ufffd", None, ""),
        ("The cafÃ© is open.", None, "mojibake"),
        ("café, naïve, Ärger, ça va", None, ""),
        ("使用 GPU 和 PyTorch 训练 BERT 模型。", None, ""),
        ("The Chinese word is 功夫.", None, ""),
        ("It is called “功夫” there.", None, ""),
        ("Kung fu (功夫) is old.", None, ""),
        ("Δx = 3 μm and α = 2π.", None, ""),
        ("日本語とEnglishと漢字", None, ""),
        ("# 读取文件\nx = open(path).read()\nlines = x.split()\ncount = len(lines)\nreturn count", None, ""),
        ("мир", "Translate peace into Russian.", ""),
        ("Привет means hello.", "Что значит привет?", ""),
        ("👋 Hello ☀️ — “quoted” … ½ €", None, ""),
    ],
)
def test_scripts_that_do_not_belong(text: str, prompt: str | None, kind: str) -> None:
    found = measure_mixed_scripts(seen(text, prompt=prompt))
    assert (found.is_fault, found.kind if found.is_fault else "") == (bool(kind), kind)
    if kind == "splice":
        assert found.offset is not None and str(found.details["quote"]) in text[found.offset :]


# ---------------------------------------------------------------- order of prompts

RULES = "Answer in the language of the customer and name the number of the order. " * 4


def test_shared_text_after_what_varies_is_found_in_texts_and_in_tokens() -> None:
    varied = [f"{name} asks about order {number}. " for name, number in (("Ana", 4711), ("Bo", 815), ("Cem", 1))]
    behind, ahead = [part + RULES for part in varied], [RULES + part for part in varied]
    for order, prompts in ((behind, behind), (ahead, ahead)):
        for units in (prompts, [list(prompt.encode()) for prompt in prompts]):
            found = diagnose_prompts(units)
            assert (found is not None) == (order is behind)
    share = measure_prompt_order(behind).value
    total = sum(map(len, behind[1:]))
    assert share == pytest.approx(2 * len(RULES) / total, abs=0.1)


@pytest.mark.parametrize(
    "prompts", [[], ["one"], ["the same prompt of some length, twice over and over"] * 4, ["a" * 50, "b" * 50]]
)
def test_other_prompts_are_in_good_order(prompts: list[str]) -> None:
    assert diagnose_prompts(prompts) is None


# ---------------------------------------------------------------- any text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=120), st.none() | st.text(max_size=40), st.sampled_from(["stop", "length", None]))
def test_no_text_raises_and_every_sentence_is_one_printable_line(text: str, prompt: str | None, reason: str | None) -> None:
    for finding in diagnose(seen(text, prompt=prompt, finish_reason=reason, params=SamplingParams(max_tokens=9))):
        for language in ("en", "zh"):
            for sentence in (finding.title(language), finding.sentence(language), finding.advice_sentence(language)):
                assert sentence.isprintable() and sentence
        json.dumps(finding.as_dict("zh"))


@pytest.mark.parametrize(
    "piece",
    ["a", " ", "\n", "\n ", "(", '"', ".", "x:", "哈", "м a", "1. ", "one word ", "\ufffd", "<|", "```\n", "a b c d e f g. "],
)
def test_a_large_text_takes_little_time(piece: str) -> None:
    start = time.process_time()
    diagnose(seen(piece * (250_000 // len(piece)), prompt=piece * 20_000, finish_reason="length"))
    assert time.process_time() - start < 5


def test_texts_of_people_raise_few_alarms() -> None:
    """Paragraphs of code and documentation that no model wrote."""
    texts = [json.loads(line)["text"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    parts = ["\n\n".join(text.split("\n\n")[begin : begin + 4]) for text in texts for begin in (1, 9, 17)]
    parts = [part for part in parts if len(part) > 150]
    alarms = [diagnose(seen(part, finish_reason="stop")) for part in parts]
    assert len(parts) > 60
    assert sum(map(bool, alarms)) / len(parts) <= 0.05
