"""Answers of every family: rendered by a chat template and read again, in any pieces, damaged, cut off, hostile."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.exhaustive import repeats
from tests.text.answers.call_templates import CALLS_FIRST, MARKUP, TEMPLATES, TOOLS, parse, parser, render
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS
from transformers.utils.chat_parsing import ResponseParser

from hasten.core.answer import Answer, ToolCall
from hasten.core.errors import InvalidOption
from hasten.text.answers import answer_writer
from hasten.text.answers.answer_parser import AnswerParser, parse_answer
from hasten.text.answers.families import reasoning_parser_names, reasoning_syntax, tool_parser_names

FAMILIES = sorted(TEMPLATES)
fast = settings(max_examples=repeats("answers"), deadline=None, suppress_health_check=list(HealthCheck))

letters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=MARKUP + "\x85\u2028\u2029")
words = st.text(letters, max_size=12).map(str.strip)
prose = st.lists(words.filter(bool), min_size=1, max_size=3).map("\n".join).filter(lambda text: "to=" not in text)
texts = st.one_of(words, st.sampled_from(['a "b" \\ c', "line 1\n  line 2\n", "é 🙂 \u0301", "{}", "'", "\\n", "true", "12", ""]))
names = st.text(st.sampled_from("abcxyz_"), min_size=1, max_size=5)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.sampled_from([0.5, -2.25, 1e300]), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)
search_arguments = st.fixed_dictionaries(
    {},
    optional={
        "query": texts,
        "limit": st.integers(-(2**40), 2**40),
        "ratio": st.sampled_from([0.5, -3.0, 1e-9, 7]),
        "exact": st.booleans(),
        "tags": st.lists(words, max_size=3),
        "filter": st.one_of(st.none(), st.dictionaries(names, json_values, max_size=3)),
    },
)
tool_calls = st.lists(
    st.one_of(st.tuples(st.just("search"), search_arguments), st.just(("get_time", {}))),
    max_size=3,
)


def cuts(text: str, positions: list[int]) -> list[str]:
    marks = [0, *sorted({position % (len(text) + 1) for position in positions}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(marks)]


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


def squeezed(text: str) -> str:
    """The text without white space, which markup swallows."""
    return re.sub(r"[ \t\r\n]", "", text)


@pytest.mark.parametrize("family", FAMILIES)
@fast
@given(data=st.data())
def test_rendered_calls_are_read_again_from_any_pieces(family: str, data: st.DataObject) -> None:
    template, reasoning = TEMPLATES[family]
    calls = data.draw(tool_calls)
    thought = data.draw(st.one_of(st.just(""), prose)) if reasoning else ""
    content = "" if family in CALLS_FIRST and calls else data.draw(st.one_of(st.just(""), prose))
    text = render(template, content, thought, calls)
    expected = parse([text], family, reasoning)
    assert calls_of(expected) == calls
    assert (expected.content, expected.reasoning) == (content, thought or None)
    assert expected.warnings == ()
    positions = data.draw(st.lists(st.integers(0, 10**6), max_size=6))
    assert parse(cuts(text, positions), family, reasoning) == expected
    assert parse(list(text), family, reasoning) == expected


def example(family: str) -> str:
    calls = [
        ("search", {"query": 'a "b"\n\\ é🙂', "limit": 3, "tags": ["x", "y"], "filter": {"k": [1, {"z": None}]}}),
        ("get_time", {}),
    ]
    content = "" if family in CALLS_FIRST else "Let me\nsee."
    return render(TEMPLATES[family][0], content, "Hm,\n\nwell" if TEMPLATES[family][1] else "", calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_into_two_gives_the_answer_of_one_piece(family: str) -> None:
    text, reasoning = example(family), TEMPLATES[family][1]
    expected = parse([text], family, reasoning)
    assert len(expected.tool_calls) == 2
    for position in range(len(text) + 1):
        assert parse([text[:position], text[position:]], family, reasoning) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_is_cut_off_loses_no_text(family: str) -> None:
    """What was a call before the cut stays one; the rest is content with a warning, or a thought."""
    text, reasoning = example(family), TEMPLATES[family][1]
    full = parse([text], family, reasoning)
    for end in range(len(text)):
        answer = parse([text[:end]], family, reasoning)
        num_calls = len(answer.tool_calls)
        assert calls_of(answer) == calls_of(full)[:num_calls]
        thoughts = [squeezed(each.reasoning or "") for each in (answer, full)]
        assert thoughts[1].startswith(thoughts[0]) or thoughts[0].startswith(thoughts[1])  # with a start of its end
        if answer.reasoning is None and not num_calls and family != "openai":
            assert squeezed(answer.content) == squeezed(text[:end])
        if answer.warnings:
            assert "left in the text" in answer.warnings[0]


@pytest.mark.parametrize("family", FAMILIES)
@fast
@given(data=st.data())
def test_damaged_text_is_read_alike_from_any_pieces_and_is_not_lost(family: str, data: st.DataObject) -> None:
    text = example(family)
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        end = min(end, start + 6)
        new = data.draw(st.one_of(st.just(""), st.sampled_from(list('{}[]",:<>\\\n')), st.just(text[:20]), st.just("<tool_call>")))
        text = text[:start] + new + text[end:]
    expected = parse([text], family, None if family == "openai" else TEMPLATES[family][1])
    assert parse(list(text), family, TEMPLATES[family][1]) == expected
    assert parse(cuts(text, data.draw(st.lists(st.integers(0, 10**6), max_size=5))), family, TEMPLATES[family][1]) == expected
    if not expected.tool_calls and expected.reasoning is None and family != "openai":
        assert squeezed(expected.content) == squeezed(text)


MALFORMED = [
    ("hermes", '<tool_call>{"name": "search", "arguments": {"query": 1}</tool_call>', "lacks '}'"),
    ("hermes", '<tool_call>{"name": "search", "arguments": [1]}</tool_call>', "no JSON object"),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "no name"),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>', "name is ''"),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "name is"),
    ("hermes", '<tool_call>{"name": "search", "name": "x", "arguments": {}}</tool_call>', "two names"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": 01}}</tool_call>', "'01' is not JSON"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": NaN}}</tool_call>', "'NaN' is not JSON"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": "\\x"}}</tool_call>', "unknown escape"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": "\\u12g4"}}</tool_call>', "u escape"),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": ' + "[" * 70 + "]" * 70 + "}}</tool_call>", "64 levels"),
    ("hermes", '<tool_call>{"name": "' + "n" * 200 + '", "arguments": {}}</tool_call>', "name is"),
    ("hermes", '<tool_call>{"name": "search", "arguments": "[1]"}</tool_call>', "no JSON object"),
    ("hermes", "<tool_call>search()</tool_call>", "lacks '{'"),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": {}} x</tool_call>', "lacks '</tool_call>'"),
    ("qwen3_coder", "<tool_call><function=search><parameter=query>x</function></tool_call>", "ends in an argument"),
    ("qwen3_coder", "<function=search><parameter=query>1</parameter><parameter=query>2</parameter></function>", "twice"),
    ("glm45", "<tool_call>search<arg_key>query</arg_key>x</tool_call>", "lacks '<arg_value>'"),
    ("minimax_m2", '<minimax:tool_call><invoke name="search"><parameter name="query">', "ends in an argument"),
    ("deepseek_v32", '<｜DSML｜function_calls><｜DSML｜invoke name="search"><｜DSML｜parameter name="query">x', "its kind"),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>x", "no JSON object"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜>x", "lacks"),
    ("mistral", "[TOOL_CALLS]search(1)", "no JSON object"),
    ("openai", "<|channel|>commentary to=functions.search<|message|>x<|call|>", "no JSON object"),
    ("gemma4", "<|tool_call>call:search{query:x}<tool_call|>", "'x' is no value"),
    ("gemma4", '<|tool_call>call:search{query:<|"|>x}<tool_call|>', "ends in a string"),
    ("kimi_k2", "<|tool_call_begin|>functions.search:0{}", "ends in its id"),
    ("pythonic", "[search(query=x)]", "'x' is no value"),
    ("pythonic", '[search(query="\\ud800")]', "escape"),
    ("llama4_pythonic", "<|python_start|>search(query=1)<|python_end|>", "lacks '['"),
    ("granite", '<|tool_call|>{"name": "search"}', "lacks '['"),
    ("phi4_mini_json", 'functools[{"name": "search", "arguments": {}}', "lacks ']'"),
]


@pytest.mark.parametrize(("family", "text", "why"), MALFORMED, ids=lambda value: str(value)[:40])
def test_a_malformed_call_is_content_with_a_warning(family: str, text: str, why: str) -> None:
    for before, after in (("", ""), ("" if family in CALLS_FIRST else "Well: ", " and more")):
        answer = parse([before + text + after], family, None)
        assert (answer.content, answer.tool_calls) == (before + text + after, ())
        (warning,) = answer.warnings
        assert warning.startswith("a tool call is malformed and was left in the text: ") or family == "openai"
        if not after:
            assert why in warning


def test_a_call_after_a_malformed_one_is_read() -> None:
    good = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    answer = parse([f"A <tool_call>{{oops {good} B"], "hermes", None)
    assert (answer.content, calls_of(answer)) == ("A <tool_call>{oops B", [("get_time", {})])
    answer = parse([f"{good}<tool_call>no{good}"], "hermes", None)
    assert (answer.content, len(answer.tool_calls), len(answer.warnings)) == ("<tool_call>no", 2, 1)


@pytest.mark.parametrize(
    ("family", "text", "content"),
    [
        ("phi4_mini_json", 'functools[{"name": "get_time", "arguments": {}}, oops', "oops"),
        ("mistral", '[TOOL_CALLS] [{"name": "get_time", "arguments": {}}, {"name": 3}]', '{"name": 3}]'),
        ("pythonic", "[get_time(), get_time(x)]", "get_time(x)]"),
        ("llama3_json", '{"name": "get_time", "parameters": {}}; {"name"', '; {"name"'),
        ("minimax_m2", '<minimax:tool_call><invoke name="get_time"></invoke><invoke x', "<invoke x"),
    ],
)
def test_calls_before_a_malformed_one_are_kept(family: str, text: str, content: str) -> None:
    answer = parse(list(text), family, None)
    assert calls_of(answer) == [("get_time", {})]
    assert answer.content == content


def test_text_that_only_looks_like_a_call_is_content_without_a_warning() -> None:
    for text in (
        '{"city": "Rome"}',
        '{"name": "Bob", "age": 3}',
        '{"name": "search"}',
        "{",
        "{1}",
        '{"name": "Bob", "parameters": {}}',
    ):
        answer = parse(list(text), "llama3_json", None)
        assert (answer.content, answer.tool_calls) == (text, ())
        assert answer.warnings == () or text in ("{", "{1}")
    for text in ("[1, 2]", "[see](http://x)", "[other(a=1)]", "[", "[x"):
        assert parse(list(text), "pythonic", None) == Answer(content=text)
    assert parse(['Use {"name": "search", "parameters": {}}'], "llama3_json", None).tool_calls == ()


SAME = [
    ("hermes", '<tool_call>{"arguments": {"limit": 1}, "name": "search"}</tool_call>', [("search", {"limit": 1})]),
    ("hermes", '<tool_call>{"name": "search", "arguments": "{\\"limit\\": 1}"}</tool_call>', [("search", {"limit": 1})]),
    ("hermes", '<tool_call>\n{"name": "get_time"}\n</tool_call>', [("get_time", {})]),
    ("hermes", '<tool_call>{"name": "get_time", "arguments": null}', [("get_time", {})]),
    ("hermes", '<tool_call>{"id": "x", "name": "get_time", "arguments": {}, "extra": [1]}</tool_call>', [("get_time", {})]),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"query": "a\nb\tc"}}</tool_call>', [("search", {"query": "a\nb\tc"})]),
    ("llama3_json", '<|python_tag|>{"name": "search", "parameters": {"limit": 1}}', [("search", {"limit": 1})]),
    ("llama3_json", '{"type": "function", "name": "search", "parameters": {}}', [("search", {})]),
    ("mistral", '[TOOL_CALLS] [{"name": "search", "arguments": {"limit": 1}, "id": "123456789"}, '
                '{"name": "get_time", "arguments": {}}]', [("search", {"limit": 1}), ("get_time", {})]),
    ("mistral", '[TOOL_CALLS]search{"limit": 1}[TOOL_CALLS]get_time[ARGS]{}', [("search", {"limit": 1}), ("get_time", {})]),
    ("qwen3_coder", "<function=search>\n<parameter=exact>\nTrue\n</parameter>\n</function>", [("search", {"exact": True})]),
    ("qwen3_coder", "<tool_call><function=search><parameter=limit>\nmany\n</parameter></function></tool_call>",
     [("search", {"limit": "many"})]),
    ("qwen3_coder", "<function=search><parameter=filter>{'a': True}</parameter></function>", [("search", {"filter": {"a": True}})]),
    ("qwen3_coder", "<function=search><parameter=query>12</parameter></function>", [("search", {"query": "12"})]),
    ("qwen3_coder", "<function=search><parameter=limit>3.0</parameter></function>", [("search", {"limit": 3})]),
    ("qwen3_coder", "<function=search><parameter=limit>1e20</parameter></function>", [("search", {"limit": "1e20"})]),
    ("qwen3_coder", "<function=other><parameter=x>12</parameter></function>", [("other", {"x": "12"})]),
    ("openai", '<|start|>assistant<|channel|>commentary to=search<|message|>{"limit": 1}', [("search", {"limit": 1})]),
    ("openai", 'to=functions.search<|channel|>commentary<|message|>{}<|end|>', [("search", {})]),
    ("pythonic", '[search(tags=("a", \'b\'), filter={"k": None}, ratio=-.5, exact=True, query=\'it\\\'s \\x41\\u00e9\',)]',
     [("search", {"tags": ["a", "b"], "filter": {"k": None}, "ratio": -0.5, "exact": True, "query": "it's Aé"})]),
    ("kimi_k2", "<|tool_call_begin|>functions.get_time:3<|tool_call_argument_begin|>{}<|tool_call_end|>", [("get_time", {})]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "calls"), SAME, ids=lambda value: str(value)[:40])
def test_variants_of_a_syntax(family: str, text: str, calls: list[tuple[str, Any]]) -> None:
    answer = parse(list(text), family, None)
    assert (answer.content, calls_of(answer)) == ("", calls)
    assert all("none of the tools" in warning for warning in answer.warnings)


THOUGHTS = [
    ("qwen3", "", "<think>\nhm\n</think>\n\nHi \n", "hm", "Hi \n"),
    ("qwen3", "<|im_start|>assistant\n<think>\n", "hm\n</think>\n\nHi", "hm", "Hi"),
    ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "\nHi", None, "\nHi"),
    ("qwen3", "", "<think>\nhm, I", "hm, I", ""),
    ("qwen3", "", "  Hi", None, "  Hi"),
    ("qwen3", "", "A <think>b</think> c <think>d</think>", "b\nd", "A c"),
    ("qwen3", "", "a </think> b", None, "a </think> b"),
    ("deepseek_r1", "<｜Assistant｜><think>\n", "<think>\nhm</think>Hi", "hm", "Hi"),
    ("deepseek_v3", "<｜Assistant｜></think>", "Hi", None, "Hi"),
    ("mistral", "", "[THINK]hm[/THINK]Hi", "hm", "Hi"),
    ("granite", "", "Here is my thought process: hm\n\nHere is my response: Hi", "hm", "Hi"),
    ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "Hi", None, "Hi"),
    ("gemma4", "<|turn>model\n", "<|channel>thought\nhm<channel|>Hi", "hm", "Hi"),
    ("openai_gptoss", "", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi", "hm", "Hi"),
    ("openai_gptoss", "", "<|channel|>analysis<|message|>hm <|start|>assistant<|channel|>analysis<|message|>so", "hm so", ""),
    ("glm45", "", "\n<think></think>\nHi", "", "Hi"),
]


@pytest.mark.parametrize(("family", "prompt", "text", "reasoning", "content"), THOUGHTS)
def test_thoughts(family: str, prompt: str, text: str, reasoning: str | None, content: str) -> None:
    for pieces in ([text], list(text), *([text[:i], text[i:]] for i in range(len(text)))):
        answer = parse(pieces, None, family, prompt)
        assert (answer.reasoning, answer.content) == (reasoning, content)


@pytest.mark.parametrize("family", reasoning_parser_names())
def test_an_answer_may_follow_each_end_of_a_thought(family: str) -> None:
    """A grammar applies right after these marks, and what it guides is the content or a call."""
    marks = reasoning_syntax(family).marks
    before = marks.start + "Hm." + marks.closing.removesuffix(marks.ends[0])
    for end in marks.ends:
        if end.endswith(" to"):  # a call
            call = '=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
            assert [each.name for each in parse_answer(before + end + call, None, family).tool_calls] == ["f"]
        else:
            answer = parse_answer(before + end + '{"a": 1}', None, family)
            assert (answer.content, answer.reasoning, answer.warnings) == ('{"a": 1}', "Hm.", ())


def test_a_call_inside_a_thought_is_part_of_the_thought() -> None:
    text = "<think>I could <tool_call>{}</tool_call></think>Hi"
    assert parse([text], "hermes", "qwen3") == Answer(content="Hi", reasoning="I could <tool_call>{}</tool_call>")


def test_arguments_stream_while_they_are_written() -> None:
    """A text argument of 100 characters comes in more than 50 fragments, in every family that writes text as text or JSON."""
    for family in FAMILIES:
        text = render(TEMPLATES[family][0], "", "", [("search", {"query": "x" * 100})])
        reading = parser(family, None)
        fragments = [call.arguments for piece in text for call in reading.feed(piece).tool_calls if call.arguments]
        assert len(fragments) > 50, family


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "gemma4"])
@fast
@given(content=st.one_of(st.just(""), prose), thought=st.one_of(st.just(""), prose), calls=tool_calls)
def test_answers_equal_those_of_transformers(family: str, content: str, thought: str, calls: list[tuple[str, Any]]) -> None:
    model = {"hermes": "qwen3", "qwen3_coder": "qwen3_5", "gemma4": "gemma4"}[family]
    template = next(value for models, value in _RESPONSE_TEMPLATE_FALLBACKS.items() if model in models)
    definitions = [{"type": "function", "function": {"name": t.name, "parameters": dict(t.parameters)}} for t in TOOLS]
    text = render(TEMPLATES[family][0], content, thought, calls)
    if family == "gemma4" and "None" in text:
        return  # it cannot read the None that the template writes
    oracle = ResponseParser(template, prefix="", tools=definitions)
    oracle.feed(text)
    message, _ = oracle.finalize()
    answer = parse([text], family, TEMPLATES[family][1])
    found = [call["function"] for call in message.get("tool_calls", ())]
    if family == "qwen3_coder":  # it takes all white space from texts
        stripped = [(name, {k: v.strip() if isinstance(v, str) else v for k, v in args.items()}) for name, args in calls_of(answer)]
        assert [(call["name"], call["arguments"]) for call in found] == stripped
    else:
        assert [(call["name"], call["arguments"]) for call in found] == calls_of(answer)
    assert message.get("content", "").strip() == answer.content
    assert message.get("reasoning_content", "") == (answer.reasoning or "")


HOSTILE: list[tuple[str, str, str, str]] = [  # family, before, what is repeated, after
    *((family, "", marker, "") for family in FAMILIES for marker in ("<tool_call>", "[", '{"', "a ", " ", "\n")),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": ', "[", ""),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": "', "\\n", ""),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": ', "1", ""),
    ("hermes", "", '<tool_call>{"name": "search", "arguments": {}}</tool_call>', ""),
    ("hermes", "", '<tool_call>{"x": "', ""),
    ("hermes", "", "<tool_cal", ""),
    ("qwen3_coder", "", "<tool_call><function=search><parameter=query>", ""),
    ("qwen3_coder", "<tool_call><function=search>", "<parameter=query>x</parameter>", ""),
    ("glm45", "<tool_call>search", "<arg_key>a</arg_key><arg_value>", ""),
    ("openai", "", "<|channel|>analysis<|message|><|start|>", ""),
    ("openai", "", "<|start|>", ""),
    ("pythonic", "[", "search(query='", ""),
    ("pythonic", "[search(filter=", "{'a':", ""),
    ("gemma4", "<|tool_call>call:search{a:", "{a:", ""),
    ("mistral", "", "[TOOL_CALLS]", ""),
    ("deepseek_v31", "", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", ""),
]  # fmt: skip


def num_executed_lines(run: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(("family", "before", "repeated", "after"), HOSTILE)
def test_the_cost_is_linear_in_the_text(family: str, before: str, repeated: str, after: str) -> None:
    """Four times the text executes four times the lines, and no line sees more than the new text and a marker."""
    reasoning = TEMPLATES[family][1]

    def run(length: int, size: int) -> None:
        text = before + repeated * (length // 200 * (1 + 200 // len(repeated))) + after
        parse([text[start : start + size] for start in range(0, len(text), size)], family, reasoning)

    for length, size in ((200, 1), (2_000, 100_000)):
        short, long = (num_executed_lines(partial(run, each, size)) for each in (length, 4 * length))
        assert long < 4.5 * short + 2_000


def test_a_hundred_thousand_openers_and_brackets_are_content() -> None:
    for family, unit in (("hermes", "<tool_call>"), ("pythonic", "["), ("llama3_json", '{"name":'), ("openai", "<|start|>")):
        text = unit * 100_000
        answer = parse([text], family, None)
        assert answer.content == text and answer.tool_calls == ()
        assert len(answer.warnings) <= answer_writer.MAX_WARNINGS + 1


def test_warnings_are_few_and_name_unknown_tools() -> None:
    answer = parse(['<tool_call>{"name": "other", "arguments": {}}</tool_call>' * 20], "hermes", None)
    assert len(answer.tool_calls) == 20
    assert answer.warnings[0] == "the answer calls 'other', which is none of the tools"
    assert answer.warnings[-1] == "12 further warnings"


def test_without_parsers_the_text_is_content() -> None:
    text = " <think>a</think> <tool_call>{}</tool_call> \n"
    assert parse(list(text), None, None) == Answer(content=text)
    assert parse_answer(text) == Answer(content=text)


def test_ids_have_nine_letters_and_digits() -> None:
    text = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>' * 50
    ids = {call.id for call in parse_answer(text, "hermes").tool_calls}
    assert len(ids) == 50 and all(re.fullmatch(r"[A-Za-z0-9]{9}", each) for each in ids)
    with_ids = parse(["[TOOL_CALLS]get_time[CALL_ID]abcdefghi[ARGS]{}"], "mistral", None)
    assert with_ids.tool_calls == (ToolCall("abcdefghi", "get_time", "{}"),)


def test_finish_may_be_called_twice() -> None:
    reading = AnswerParser("hermes")
    reading.feed("a <tool_cal")
    assert reading.finish().content == " <tool_cal" and reading.finish().content == ""


def test_every_family_has_a_template_here() -> None:
    assert set(tool_parser_names()) == set(TEMPLATES)
    assert set(reasoning_parser_names()) == {name for *_, name in TEMPLATES.values() if name} | {family for family, *_ in THOUGHTS}


def test_unknown_parsers_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"tool_call_parser has an unknown name: got hermess\. Did you mean 'hermes'"):
        AnswerParser("hermess")
    with pytest.raises(InvalidOption, match="reasoning_parser has an unknown name"):
        AnswerParser(None, "qwen")
