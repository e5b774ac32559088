"""``choose_parsers``: which parsers fit a checkpoint, from the literal markers in its chat template."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.text.answers.families import reasoning_syntax, tool_syntax


@dataclass(frozen=True, slots=True)
class ParserChoice:
    """A parser's name, or None, and why."""

    name: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class ParserChoices:
    tool: ParserChoice
    reasoning: ParserChoice


@dataclass(frozen=True, slots=True)
class _Rule:
    """A template with all of ``markers`` and none of ``absent`` belongs to the family."""

    name: str
    markers: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def fits(self, template: str) -> bool:
        return all(each in template for each in self.markers) and not any(each in template for each in self.absent)


# The first rule that fits counts, so markers that other families share come last.
_TOOL_RULES = (
    _Rule("openai", ("<|channel|>", "<|message|>")),
    _Rule("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Rule("minimax_m2", ("<minimax:tool_call>",)),
    _Rule("deepseek_v32", ("｜DSML｜",)),
    _Rule("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    _Rule("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    _Rule("gemma4", ("<|tool_call>", "<tool_call|>")),
    _Rule("glm45", ("<arg_key>", "<arg_value>")),
    _Rule("qwen3_coder", ("<function=", "<parameter="), absent=("<seed:tool_call>",)),
    _Rule("mistral", ("[TOOL_CALLS]",)),
    _Rule("phi4_mini_json", ("functools[",)),
    _Rule("granite", ("<|start_of_role|>", "<|tool_call|>")),
    _Rule("granite4", ("<|start_of_role|>", "<tool_call>")),
    _Rule("llama4_pythonic", ("<|header_start|>", "<|python_start|>")),
    _Rule("hermes", ("<tool_call>",)),
    _Rule("pythonic", ("[func_name1(",)),
    _Rule("llama3_json", ("<|start_header_id|>", '"parameters": '), absent=("<TOOLCALL>",)),
    _Rule("llama3_json", ("<|python_tag|>",), absent=("<TOOLCALL>",)),
)
_REASONING_RULES = (
    _Rule("openai_gptoss", ("<|channel|>", "<|message|>")),
    _Rule("gemma4", ("<|channel>thought",)),
    _Rule("mistral", ("[THINK]",)),
    _Rule("granite", ("Here is my thought process",)),
    _Rule("kimi_k2", ("</think>", "<|im_middle|>")),
    _Rule("minimax_m2", ("</think>", "<minimax:tool_call>")),
    _Rule("glm45", ("</think>", "[gMASK]")),
    _Rule("deepseek_v3", ("</think>", "<｜Assistant｜>", "thinking")),
    _Rule("deepseek_r1", ("</think>", "<｜Assistant｜>")),
    _Rule("qwen3", ("</think>", "<|im_start|>")),
    _Rule("deepseek_r1", ("</think>",)),
)


def choose_parsers(template: str | None, tool: str | None = None, reasoning: str | None = None) -> ParserChoices:
    """Return the parsers for a chat template's source.

    ``tool``, ``reasoning``: names that override it, or "none".

    Raises ``InvalidOption`` for an unknown name.
    """
    if tool is not None and tool != "none":
        tool_syntax(tool)
    if reasoning is not None and reasoning != "none":
        reasoning_syntax(reasoning)
    return ParserChoices(
        _chosen(template, _TOOL_RULES, "calls") if tool is None else _given(tool, "tool_call_parser"),
        _chosen(template, _REASONING_RULES, "thoughts") if reasoning is None else _given(reasoning, "reasoning_parser"),
    )


def _given(name: str, option: str) -> ParserChoice:
    return ParserChoice(None if name == "none" else name, f"given as {option}")


def _chosen(template: str | None, rules: tuple[_Rule, ...], what: str) -> ParserChoice:
    if template is None:
        return ParserChoice(None, "the checkpoint has no chat template")
    for rule in rules:
        if rule.fits(template):
            return ParserChoice(rule.name, f"the chat template has {' and '.join(rule.markers)}")
    return ParserChoice(None, f"the chat template has no markers of {what} that hasten knows")
