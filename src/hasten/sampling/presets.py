"""Named sampling settings for common purposes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from hasten.core.errors import InvalidOption, nearest, show

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Preset:
    settings: Mapping[str, Any]  # fields of SamplingParams
    reason: str
    reason_zh: str

    def explain(self, language: Language = "en") -> str:
        """Return one line that says what the settings do, and why they suit the purpose."""
        return self.reason_zh if language == "zh" else self.reason


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "creative": Preset(
            {"temperature": 1.0, "top_p": 0.95},
            "The model's own distribution, without the unlikely tail that breaks a text.",
            "创意写作：保持模型原有的分布，只去掉会破坏文本的低概率尾部。",
        ),
        "balanced": Preset(
            {"temperature": 0.7, "top_p": 0.9},
            "Outputs vary, and each stays close to what the model finds likely.",
            "均衡：输出有变化，又不偏离模型认为可能的内容。",
        ),
        "deterministic": Preset(
            {"temperature": 0.2, "top_k": 20},
            "Almost always the most likely token, with enough randomness to leave a loop.",
            "确定性任务：几乎总取概率最高的 token，只留少许随机性以跳出循环。",
        ),
        "qa": Preset(
            {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
            "Facts need the likely token; a light penalty stops the output from restating the question.",
            "问答：事实需要高概率的 token；轻微的重复惩罚避免复述问题。",
        ),
        "code": Preset(
            {"temperature": 0.2, "top_p": 0.95, "repetition_penalty": 1.05},
            "Code has to repeat names, so the penalty stays light and the temperature low.",
            "代码：名称必须重复，所以惩罚要轻，温度要低。",
        ),
        "poetry": Preset(
            {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.3},
            "A word that was used becomes slightly less likely than one that was not.",
            "诗歌：用过的词概率略降，使主题更丰富。",
        ),
        "long-chat": Preset(
            {"temperature": 0.7, "top_p": 0.9, "no_repeat_ngram_size": 4},
            "Long outputs fall into loops; no sequence of four tokens occurs twice.",
            "长对话：长输出容易陷入循环，所以任何四个连续 token 不出现两次。",
        ),
        "translation": Preset(
            {"temperature": 0.0, "beam_width": 4, "length_penalty": 0.8},
            "Beam search returns one best output; long candidates gain slightly less than with their mean log-probability.",
            "翻译：束搜索返回得分最高的译文；与平均对数概率相比，长译文的优势略小。",
        ),
    }
)


def preset(name: str) -> dict[str, Any]:
    """Return a preset as fields of ``SamplingParams``; raises ``InvalidOption`` for an unknown name."""
    return dict(find_preset(name).settings)


def find_preset(name: str) -> Preset:
    """Return the preset of this name. Raises ``InvalidOption`` that offers the nearest one."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidOption("unknown preset", got=show(name), remedy=nearest(name, PRESETS))
    return PRESETS[name]
