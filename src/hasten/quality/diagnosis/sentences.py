"""The sentences of findings and advice, in English and Chinese."""

from __future__ import annotations

from typing import Any, Literal

from hasten.core.errors import clip, printable
from hasten.quality.diagnosis.observed import Measurement

Language = Literal["en", "zh"]

FAULT_NAMES: dict[Language, dict[str, str]] = {
    "en": {
        "repetition": "repetition",
        "degenerate": "degenerate distribution",
        "mixed_scripts": "mixed scripts",
        "too_long": "too long",
        "too_short": "too short",
        "truncation": "truncation",
        "prompt_order": "prompt order",
    },
    "zh": {
        "repetition": "重复",
        "degenerate": "分布退化",
        "mixed_scripts": "文字混杂",
        "too_long": "过长",
        "too_short": "过短",
        "truncation": "截断",
        "prompt_order": "提示顺序",
    },
}
# Kind of a measurement -> its sentence.
_FINDINGS: dict[Language, dict[str, str]] = {
    "en": {
        "loop": "{share:.0%} of the output is a loop of {period} tokens.",
        "loop_text": "{share:.0%} of the output is a loop of {quote!r}.",
        "ngrams": "{share:.0%} of its sequences of {size} tokens or words occurred before.",
        "flat": "The tokens are unlikely for the model: {surprise:.1f} nats each, where texts have one to three.",
        "peaked": "For {share:.0%} of the tokens the model saw no alternative.",
        "replaced": "It has bytes that are no character.",
        "mojibake": "UTF-8 was read in another encoding, as in {quote!r}.",
        "splice": "Letters of another script ({script}) stand in the text, as in {quote!r}.",
        "marker": "It goes on after the end marker {stop!r}.",
        "turn": "It goes on with the next turn, {stop!r}.",
        "asked_less": "It has {count} {unit}, and the prompt asks for {asked}.",
        "empty": "The output is empty.",
        "announcement": "It announces something and stops: {end!r}.",
        "asked": "It has {count} {unit}, and the prompt asks for {asked}.",
        "fence": "A block of code is not closed.",
        "bracket": "The bracket {bracket!r} is not closed.",
        "sentence": "It ends within a sentence: {end!r}.",
        "order": "{shared:.0%} of the prompts' text is shared, and {prefix:.0%} as a common beginning.",
    },
    "zh": {
        "loop": "输出的 {share:.0%} 是 {period} 个 token 的循环。",
        "loop_text": "输出的 {share:.0%} 是“{quote}”的循环。",
        "ngrams": "{share:.0%} 的 {size} 元组（n-gram）在前文出现过。",
        "flat": "模型认为这些 token 不大可能：平均每个 {surprise:.1f} nat，通常的文本是 1 至 3。",
        "peaked": "{share:.0%} 的 token 在模型看来没有别的选择。",
        "replaced": "其中有无法解码的字节。",
        "mojibake": "UTF-8 被当作别的编码读取，例如“{quote}”。",
        "splice": "文中夹有别的文字（{script}），例如“{quote}”。",
        "marker": "结束标记 {stop} 之后仍在继续。",
        "turn": "续写了下一轮对话，从 {stop!r} 开始。",
        "asked_less": "有 {count} 个{unit}，提示要求 {asked} 个。",
        "empty": "输出为空。",
        "announcement": "只有开场白就停止了：“{end}”。",
        "asked": "有 {count} 个{unit}，提示要求 {asked} 个。",
        "fence": "代码块没有结束。",
        "bracket": "括号 {bracket} 没有闭合。",
        "sentence": "在句子中间结束：“{end}”。",
        "order": "提示文本有 {shared:.0%} 是共有的，其中作为相同开头的只有 {prefix:.0%}。",
    },
}
_UNITS = {"words": "词", "sentences": "句子", "characters": "字"}
_ADVICE: dict[Language, dict[str, str]] = {
    "en": {
        "set": "set {parameter} to {value} (now {now})",
        "prompt": "put the shared part of the prompts first and what varies last",
        "max_model_len": "raise max_model_len of the engine, as the context is full",
        "encoding": "read and write the text as UTF-8; no sampling setting changes this",
        "none": "every setting that could help is turned already; change the prompt or the model",
    },
    "zh": {
        "set": "把 {parameter} 设为 {value}（现在是 {now}）",
        "prompt": "把提示中共有的部分放在前面，变化的部分放在最后",
        "max_model_len": "上下文已满，调大引擎的 max_model_len",
        "encoding": "以 UTF-8 读写文本；采样参数对此无效",
        "none": "能调的参数都已调过，请改提示或换模型",
    },
}


def fault_sentence(measurement: Measurement, language: Language) -> str:
    """Return one sentence in printable characters."""
    details: dict[str, Any] = {
        name: clip(printable(value), 60) if isinstance(value, str) else value for name, value in measurement.details.items()
    }
    if language == "zh" and "unit" in details:
        details["unit"] = _UNITS[details["unit"]]
    return _FINDINGS[language][measurement.kind].format(**details)


def place(measurement: Measurement, language: Language) -> str:
    """Return where the fault begins, or an empty text."""
    if measurement.offset is None:
        return ""
    if language == "zh":
        return f"从第 {measurement.offset} 个{' token ' if measurement.unit == 'token' else '字符'}起"
    return f"from {measurement.unit} {measurement.offset}"


def change_sentence(parameter: str, value: object, now: object, language: Language) -> str:
    """Return how to set a sampling setting, without a full stop."""
    return _ADVICE[language]["set"].format(parameter=parameter, value=_shown(value), now=_shown(now))


def other_sentence(remedy: str, language: Language) -> str:
    """Return what to do where no sampling setting helps, without a full stop.

    ``remedy``: "prompt", "max_model_len", "encoding" or "none".
    """
    return _ADVICE[language][remedy]


def _shown(value: object) -> str:
    return clip(printable(repr(list(value) if isinstance(value, tuple) else value)), 80)
