"""Grammars of tool calls: llguidance accepts what chat templates write, and nothing that is no call of the tools."""

from __future__ import annotations

import json
import re
from functools import cache
from random import Random
from typing import Any

import jsonschema
import llguidance.hf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tests.text.answers.call_templates import CALLS_FIRST, TEMPLATES, TOOLS, parse, render
from tests.text.answers.test_answer_parser import search_arguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hasten.core.errors import InvalidRequest
from hasten.text.answers.families import syntax_markers, tool_syntax
from hasten.text.answers.tool_grammar import tool_grammar

FAMILIES = sorted(set(TEMPLATES) - {"qwen3_xml", "granite4"})  # these have the syntax of another
END = "<|endoftext|>"
calls_of_search = search_arguments.map(lambda arguments: ("search", arguments))


class Bytes:
    """A tokenizer of single bytes, with special tokens."""

    def __init__(self, special: tuple[str, ...]) -> None:
        vocabulary = {character: i for i, character in enumerate(bytes_to_unicode().values())}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END, *special])
        make: Any = PreTrainedTokenizerFast
        self.tokenizer = make(tokenizer_object=tokenizer, eos_token=END)
        self.guide: LLTokenizer = llguidance.hf.from_tokenizer(self.tokenizer)
        self.ids = {text: self.tokenizer.convert_tokens_to_ids(text) for text in special}

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = LLMatcher(self.guide, LLMatcher.grammar_from_lark(grammar))
        assert not matcher.is_error(), matcher.get_error()
        token_ids = self.tokenizer.encode(text)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


@cache
def tokens(family: str, has_special: bool) -> Bytes:
    markers = {"deepseek_v32": ("｜DSML｜",), "phi4_mini_json": ()}.get(family, syntax_markers(family, None))
    return Bytes(tuple(dict.fromkeys(markers)) if has_special else ())


def grammar(family: str, choice: str, has_special: bool) -> str:
    return tool_grammar(family, TOOLS, choice, special_token_ids=tokens(family, has_special).ids)


def in_order(family: str, call: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The call with arguments in the order of the schema, which gemma's template sorts."""
    properties = {tool.name: list(tool.properties) for tool in TOOLS}[call[0]]
    return call[0], {name: call[1][name] for name in properties if name in call[1]}


def written(family: str, content: str, *calls: tuple[str, dict[str, Any]]) -> str:
    """What the template writes, in the one of its variants that the grammar has."""
    text = render(TEMPLATES[family][0], content, "", calls).lstrip("\n")
    text = text.replace("<|python_start|>", "").replace("<|python_end|>", "")
    text = re.sub(r"\[CALL_ID\]call\d{5}", "", text)
    return re.sub(
        r" to=functions.(\w+)<\|channel\|>commentary json", r"<|channel|>commentary to=functions.\1 <|constrain|>json", text
    )


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(st.one_of(calls_of_search, st.just(("get_time", {}))), min_size=1, max_size=2))
def test_rendered_calls_are_accepted(family: str, has_special: bool, calls: list[tuple[str, dict[str, Any]]]) -> None:
    calls = calls[:1] if family == "openai" else calls
    text = written(family, "", *(in_order(family, call) for call in calls))
    assert len(parse([text], family, None).tool_calls) == len(calls)
    for choice in ("required", "auto"):
        assert tokens(family, has_special).accepts(grammar(family, choice, has_special), text)
    named = grammar(family, calls[0][0], has_special)
    assert tokens(family, has_special).accepts(named, text) == (len(calls) == 1)


@pytest.mark.parametrize("has_special", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_texts_are_refused(family: str, has_special: bool) -> None:
    guide, required = tokens(family, has_special), grammar(family, "required", has_special)
    assert guide.accepts(required, written(family, "", ("search", {"query": "a"})))
    assert not guide.accepts(required, written(family, "", ("other", {"query": "a"})))
    assert not guide.accepts(required, written(family, "", ("search", {"limit": "many"})))
    assert not guide.accepts(required, written(family, "Hello"))
    assert not guide.accepts(required, "")
    assert not guide.accepts(required, written(family, "", ("search", {"query": "a"}))[:-1])
    auto = grammar(family, "auto", has_special)
    assert guide.accepts(auto, written(family, "Hello"))
    assert not guide.accepts(auto, written(family, "", ("other", {"query": "a"})))
    if family not in CALLS_FIRST and family != "openai":
        assert guide.accepts(auto, written(family, "Hello", ("search", {"query": "a"})))
        assert not guide.accepts(auto, written(family, "Hello", ("search", {"limit": "many"})))


def test_required_arguments_are_required() -> None:
    from hasten.core.tool_definition import read_tool_definitions

    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x", "y"]}, "b": {"$ref": "#/$defs/n"}, "c": {}},
        "required": ["b"],
        "$defs": {"n": {"type": "integer", "minimum": 3}},
    }
    tools = read_tool_definitions([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    guide = tokens("qwen3_coder", False)
    text = tool_grammar("qwen3_coder", tools, "required")

    def accepts(**arguments: str) -> bool:
        parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in arguments.items())
        return guide.accepts(text, f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>")

    assert accepts(b="3") and accepts(a="x", b="4") and accepts(b="5", c="any\nthing")
    assert not accepts() and not accepts(a="x") and not accepts(b="2") and not accepts(a="z", b="3") and not accepts(b="3", d="1")


def test_older_templates_of_mistral_write_lists() -> None:
    guide = tokens("mistral", False)
    text = tool_grammar("mistral", TOOLS, "required", template="... [TOOL_CALLS] ...")
    assert guide.accepts(text, '[TOOL_CALLS] [{"name": "get_time", "arguments": {}}, {"name": "get_time", "arguments": {}}]')
    assert not guide.accepts(text, "[TOOL_CALLS]get_time[ARGS]{}")


def test_a_choice_of_no_tool_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"tool_choice names none of the tools: got serch\. Did you mean 'search'"):
        tool_grammar("hermes", TOOLS, "serch")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_grammar_permits_is_read_as_calls_that_fit_the_schemas(family: str) -> None:
    """Random walks through the grammar; now and then the ends of values are tried, so that the walks end."""
    guide, text = tokens(family, False), grammar(family, "required", False)
    shape, num_finished = tool_syntax(family).shape, 0
    after = "" if shape.parameters is None else shape.parameters.after
    ends = [each for each in (after, '<|"|>', '"', "'", "}", "]", ")", "<|end|><|start|>assistant", shape.after) if each]
    for seed in range(8):
        random, matcher, written = Random(seed), LLMatcher(guide.guide, LLMatcher.grammar_from_lark(text)), []
        for _ in range(300):
            if matcher.is_accepting() and (matcher.is_stopped() or random.random() < 0.5):
                break
            token_ids = guide.tokenizer.encode(random.choice(ends))
            if random.random() < 0.4 and matcher.validate_tokens(token_ids) == len(token_ids):
                pass
            else:
                mask = int.from_bytes(matcher.compute_bitmask(), "little")
                token_ids = [random.choice([i for i in range(256) if mask >> i & 1])]
            matcher.consume_tokens(token_ids)
            written += token_ids
        if not matcher.is_accepting():
            continue
        num_finished += 1
        answer = parse([guide.tokenizer.decode(written)], family, None)
        assert answer.tool_calls and not answer.warnings, (guide.tokenizer.decode(written), answer)
        for call in answer.tool_calls:
            schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
            jsonschema.validate(json.loads(call.arguments), schema)
    assert num_finished >= 3
