"""Chat templates that write an assistant's turn in the real syntax of each family, and the texts they give."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from hasten.core.answer import Answer
from hasten.core.tool_definition import ToolDefinition, read_tool_definitions
from hasten.text.answers.answer_parser import AnswerParser
from hasten.text.template_renderer import TemplateRenderer

_THINK = "{%- if reasoning %}<think>\n{{ reasoning }}\n</think>\n\n{% endif %}"
_HERMES = """{{ content }}{% for call in calls %}{{ '\n' if content or not loop.first }}<tool_call>
{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}
</tool_call>{% endfor %}"""
_GLM = """{% for call in calls %}{{ '\n' }}<tool_call>{{ call.name }}
{% for k, v in call.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}"""
_QWEN_CODER = """{{ content }}{% for call in calls %}{{ '\n\n' if loop.first and content else '\n' }}<tool_call>
<function={{ call.name }}>
{% for k, v in call.arguments.items() %}<parameter={{ k }}>
{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}"""
_DEEPSEEK_31 = """{{ content }}{% for call in calls %}{{ '<｜tool▁calls▁begin｜>' if loop.first }}<｜tool▁call▁begin｜>
{{- call.name }}<｜tool▁sep｜>{{ call.arguments | tojson }}<｜tool▁call▁end｜>
{{- '<｜tool▁calls▁end｜>' if loop.last }}{% endfor %}"""
_DEEPSEEK_3 = """{{ content }}{% for call in calls %}{{ '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}<｜tool▁call▁begin｜>
{{- 'function<｜tool▁sep｜>' + call.name + '\n```json\n' }}{{ call.arguments | tojson }}{{ '\n```<｜tool▁call▁end｜>' }}
{{- '<｜tool▁calls▁end｜>' if loop.last }}{% endfor %}"""
_DEEPSEEK_32 = """{{ content }}{% for call in calls %}{{ '\n\n<｜DSML｜function_calls>\n' if loop.first }}<｜DSML｜invoke name="
{{- call.name }}">
{% for k, v in call.arguments.items() %}<｜DSML｜parameter name="{{ k }}" string="{{ 'true' if v is string else 'false' }}">
{{- v if v is string else v | tojson }}</｜DSML｜parameter>
{% endfor %}</｜DSML｜invoke>
{{ '</｜DSML｜function_calls>' if loop.last }}{% endfor %}"""
_KIMI = """{{ content }}{% for call in calls %}{{ '<|tool_calls_section_begin|>' if loop.first -}}
<|tool_call_begin|>functions.{{ call.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ call.arguments | tojson -}}
<|tool_call_end|>{{ '<|tool_calls_section_end|>' if loop.last }}{% endfor %}"""
_MINIMAX = """{{ content }}{% for call in calls %}{{ '\n<minimax:tool_call>\n' if loop.first }}<invoke name="{{ call.name }}">
{% for k, v in call.arguments.items() %}<parameter name="{{ k }}">{{ v if v is string else v | tojson }}</parameter>
{% endfor %}</invoke>
{{ '</minimax:tool_call>' if loop.last }}{% endfor %}"""
_GEMMA = """{%- macro value(v) -%}
{%- if v is string %}<|"|>{{ v }}<|"|>{% elif v is boolean %}{{ 'true' if v else 'false' }}
{%- elif v is mapping %}{ {%- for k, w in v | dictsort %}{{ k }}:{{ value(w) }}{{ ',' if not loop.last }}{% endfor -%} }
{%- elif v is sequence %}[{% for w in v %}{{ value(w) }}{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ v }}{% endif -%}
{%- endmacro -%}
{%- if reasoning %}<|channel>thought
{{ reasoning }}
<channel|>{% endif %}{{ content }}{% for call in calls %}<|tool_call>call:{{ call.name }}{{ value(call.arguments) -}}
<tool_call|>{% endfor %}"""
_HARMONY = """{%- if reasoning %}<|channel|>analysis<|message|>{{ reasoning -}}
<|end|>{{ '<|start|>assistant' if content or calls }}{% endif %}
{%- if content %}<|channel|>{{ 'commentary' if calls else 'final' }}<|message|>{{ content }}{% endif %}
{%- for call in calls %}{{ '<|end|><|start|>assistant' if content or not loop.first }} to=functions.{{ call.name -}}
<|channel|>commentary json<|message|>{{ call.arguments | tojson }}{{ '<|call|>' if loop.last }}{% endfor %}"""
_PYTHONIC = """{% for call in calls %}{{ '[' if loop.first }}{{ call.name }}({% for k, v in call.arguments.items() -%}
{{ k }}={{ python(v) }}{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last else ']' }}{% endfor %}{{ content }}"""
_LIST = '[{% for call in calls %}{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}'
_LIST += "{{ ', ' if not loop.last }}{% endfor %}]"

# By tool parser: the template, and the reasoning parser that goes with it.
TEMPLATES: dict[str, tuple[str, str | None]] = {
    "hermes": (_THINK + _HERMES, "qwen3"),
    "granite4": (_HERMES, None),
    "qwen3_coder": (_THINK + _QWEN_CODER, "qwen3"),
    "qwen3_xml": (_QWEN_CODER, None),
    "deepseek_v3": (_THINK + _DEEPSEEK_3, "deepseek_r1"),
    "deepseek_v31": (_THINK + _DEEPSEEK_31, "deepseek_v3"),
    "deepseek_v32": (_THINK + _DEEPSEEK_32, "deepseek_v3"),
    "kimi_k2": (_THINK + _KIMI, "kimi_k2"),
    "minimax_m2": (_THINK + _MINIMAX, "minimax_m2"),
    "glm45": (_THINK + "{{ content }}" + _GLM, "glm45"),
    "glm47": (_THINK + "{{ content }}" + _GLM.replace("\n", "").replace("{{ '\\n' }}", ""), "glm45"),
    "gemma4": (_GEMMA, "gemma4"),
    "openai": (_HARMONY, "openai_gptoss"),
    "mistral": (
        "{% if reasoning %}[THINK]{{ reasoning }}[/THINK]{% endif %}{{ content }}{% for call in calls %}"
        "[TOOL_CALLS]{{ call.name }}[CALL_ID]{{ call.id }}[ARGS]{{ call.arguments | tojson }}{% endfor %}",
        "mistral",
    ),
    "granite": (
        "{% if reasoning %}Here is my thought process: {{ reasoning }}\n\nHere is my response: {% endif %}{{ content }}"
        "{% if calls %}<|tool_call|>" + _LIST + "{% endif %}",
        "granite",
    ),
    "phi4_mini_json": ("{{ content }}{% if calls %}functools" + _LIST + "{% endif %}", None),
    "llama3_json": (
        '{% for call in calls %}{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}'
        "{{ '; ' if not loop.last }}{% endfor %}{{ content }}",
        None,
    ),
    "pythonic": (_PYTHONIC, None),
    "llama4_pythonic": (
        "{{ '<|python_start|>' if calls }}" + _PYTHONIC.replace("{{ content }}", "{{ '<|python_end|>' if calls }}{{ content }}"),
        None,
    ),
}
CALLS_FIRST = {"llama3_json", "pythonic", "llama4_pythonic"}  # nothing stands before their calls
MARKUP = "<｜[{|`"  # no text of the tests has these characters outside of JSON

TOOLS: tuple[ToolDefinition, ...] = read_tool_definitions(
    [
        {
            "type": "function",
            "function": {
                "name": "search",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string"},
                        "limit": {"type": "integer"},
                        "ratio": {"type": "number"},
                        "exact": {"type": "boolean"},
                        "tags": {"type": "array", "items": {"type": "string"}},
                        "filter": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                    },
                },
            },
        },
        {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
    ]
)
_RENDERER = TemplateRenderer()


def render(template: str, content: str, reasoning: str, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return the text of an assistant's turn."""
    variables = {
        "content": content,
        "reasoning": reasoning,
        "calls": [{"name": name, "arguments": arguments, "id": f"call0000{i}"} for i, (name, arguments) in enumerate(calls)],
        "python": repr,
    }
    answer = _RENDERER.answer({"template": template, "variables": variables, "strict": False, "max_length": 1 << 24})
    assert "text" in answer, answer
    text: str = answer["text"]
    return text


def numbered_ids() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"id{next(numbers)}"


def parser(tool: str | None, reasoning: str | None, prompt: str = "") -> AnswerParser:
    return AnswerParser(tool, reasoning, tools=TOOLS, make_id=numbered_ids(), prompt=prompt)


def parse(pieces: Sequence[str], tool: str | None, reasoning: str | None, prompt: str = "") -> Answer:
    """Return the answer of a text in pieces. The deltas must add up to it, and little text may wait between two pieces."""
    reading = parser(tool, reasoning, prompt)
    deltas = []
    for piece in pieces:
        deltas.append(reading.feed(piece))
        assert reading.num_waiting < 64 and len(reading._reader._text) < 64 + len(piece)
    deltas.append(reading.finish())
    answer = reading.answer
    assert "".join(delta.content for delta in deltas) == answer.content
    assert "".join(delta.reasoning for delta in deltas) == (answer.reasoning or "")
    calls: list[list[str]] = []
    for delta in (call for each in deltas for call in each.tool_calls):
        if delta.is_withdrawn:
            assert delta.index == len(calls) - 1
            calls.pop()
        elif delta.id is not None:
            assert delta.index == len(calls) and delta.name
            calls.append([delta.id, delta.name, delta.arguments])
        else:
            assert delta.index == len(calls) - 1
            calls[-1][2] += delta.arguments
    assert [tuple(call) for call in calls] == [(call.id, call.name, call.arguments) for call in answer.tool_calls]
    assert all(isinstance(json.loads(call.arguments), dict) for call in answer.tool_calls)
    return answer
