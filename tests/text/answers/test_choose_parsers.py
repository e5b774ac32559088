"""The parsers of a chat template: of the templates that checkpoints ship, in short forms, and of the tests' own."""

from __future__ import annotations

import pytest
from tests.text.answers.call_templates import TEMPLATES as CALL_TEMPLATES
from tests.text.chat_templates import TEMPLATES

from hasten.core.errors import InvalidOption
from hasten.text.answers.choose_parsers import choose_parsers
from hasten.text.answers.families import tool_parser_names

# Parts of the real templates that tell the families apart.
EXCERPTS = [
    ('<|start_header_id|>ipython {"name": "\' + name \'", "parameters": \'}} <|python_tag|>', "llama3_json", None),
    ("<|header_start|>assistant<|header_end|> <|python_start|>[func_name1(", "llama4_pythonic", None),
    ("<|im_start|>assistant <think> </think> <tool_call>\n<function=example> <parameter=x> </tool_call>", "qwen3_coder", "qwen3"),
    ('<|im_start|> <tools></tools> <tool_call>\n{"name": <function-name>}</tool_call>', "hermes", None),
    ("<|im_start|> <think> </think> <tool_call></tool_call>", "hermes", "qwen3"),
    ("[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK] [/THINK]", "mistral", "mistral"),
    ("<｜Assistant｜><think>\\n <｜tool▁calls▁begin｜>function<｜tool▁sep｜> ```json </think>", "deepseek_v3", "deepseek_r1"),
    ("<｜Assistant｜></think> thinking <｜tool▁calls▁begin｜><｜tool▁sep｜>", "deepseek_v31", "deepseek_v3"),
    ("<｜Assistant｜> ｜DSML｜ </think> enable_thinking", "deepseek_v32", "deepseek_v3"),
    ("<|start|>assistant<|channel|>analysis<|message|> <|call|>", "openai", "openai_gptoss"),
    ("[gMASK]<sop> <tool_call>{function-name}\n<arg_key>k</arg_key>\n<arg_value>v</arg_value> <think></think>", "glm45", "glm45"),
    ("<|tool_call>call: <tool_call|> <|channel>thought\n<channel|>", "gemma4", "gemma4"),
    ("<|start_of_role|> <tool_call>{}</tool_call>", "granite4", None),
    ("<|start_of_role|> <|tool_call|> Here is my thought process: Here is my response:", "granite", "granite"),
    ("<|im_middle|> <|tool_calls_section_begin|> <think></think>", "kimi_k2", "kimi_k2"),
    ("]~b]ai <minimax:tool_call> <think> </think>", "minimax_m2", "minimax_m2"),
    ("functools[{", "phi4_mini_json", None),
    ("[func_name1(params_name1=params_value1)]", "pythonic", None),
    ("<seed:tool_call>\n<function=f>\n<parameter=x>\n</seed:tool_call>", None, None),  # Seed-OSS and Nemotron: no parser yet
    ('<|start_header_id|> <TOOLCALL>[{"name": "f", "parameters": {}}]</TOOLCALL>', None, None),
    ("{{ content.split('</think>')[-1] }}", None, "deepseek_r1"),
]
SHIPPED = {
    "llama-3-tools": ("llama3_json", None),
    "qwen-2.5": ("hermes", None),
    "qwen-3": (None, "qwen3"),
    "mistral": ("mistral", None),
    "chatml": (None, None),
    "gemma-3": (None, None),
}


@pytest.mark.parametrize(("template", "tool", "reasoning"), EXCERPTS)
def test_markers_name_the_parsers(template: str, tool: str | None, reasoning: str | None) -> None:
    choices = choose_parsers(template)
    assert (choices.tool.name, choices.reasoning.name) == (tool, reasoning)
    for choice in (choices.tool, choices.reasoning):
        if choice.name is not None:
            markers = choice.reason.removeprefix("the chat template has ").split(" and ")
            assert all(marker in template for marker in markers)
        else:
            assert "no markers of" in choice.reason


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_templates(name: str) -> None:
    choices = choose_parsers(TEMPLATES[name])
    assert (choices.tool.name, choices.reasoning.name) == SHIPPED[name]


def test_every_syntax_but_copies_has_a_rule() -> None:
    copies = {"qwen3_xml", "glm47"}  # for those who name them
    assert {tool for _, tool, _ in EXCERPTS if tool} == set(tool_parser_names()) - copies == set(CALL_TEMPLATES) - copies


def test_names_override_the_template() -> None:
    choices = choose_parsers(TEMPLATES["qwen-3"], tool="mistral", reasoning="none")
    assert (choices.tool.name, choices.tool.reason) == ("mistral", "given as tool_call_parser")
    assert (choices.reasoning.name, choices.reasoning.reason) == (None, "given as reasoning_parser")
    assert choose_parsers(None).tool.reason == "the checkpoint has no chat template"
    with pytest.raises(InvalidOption, match=r"tool_call_parser has an unknown name: got lama3_json\. Did you mean 'llama3_json'"):
        choose_parsers("", tool="lama3_json")
    with pytest.raises(InvalidOption, match="reasoning_parser has an unknown name"):
        choose_parsers("", reasoning="x")
