"""``route``: whether a question suits sections that are written without each other.

Rules over the text, in English and Chinese. A question that needs one train of thought (code, a proof, a number, a story) does not
suit, whatever else it has; of the others, those that ask for a list, a comparison, advice or an overview suit. The rest does not:
plain decoding is right for every question, sections only for some (Ning et al., 2023, section 5, train a classifier for this).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_READ = 4000  # characters; the request itself stands at the start or is shorter


@dataclass(frozen=True, slots=True)
class Route:
    suits: bool  # whether the rules choose sections
    reason: str
    forced: bool = False  # the caller chose sections, whatever the rules say


# An order at the start of a sentence, so that "how do I write a good letter" is no order to write one.
_ORDER = r"(?:^|[.!?:;\n]\s*)(?:please\s+|now\s+|(?:can|could|would|will)\s+you\s+(?:please\s+)?|help\s+me\s+(?:to\s+)?)?"
_ORDER_ZH = r"(?:^|[。！？，；：\n])\s*(?:请|你|您|帮|我|给|替|为|能|可以|麻烦|能否|来|试着)*"

_ONE_TRAIN_OF_THOUGHT = (
    (
        "it asks for code, or about a piece of code",
        rf"```|\b\w+(?:Error|Exception)\b|\bfor \w+ in \w|\bdef \w+\(|\w+\(\)|[;{{]\s*\n|\b(?:SELECT|select)\b.+\b(?:FROM|from)\b"
        rf"|{_ORDER}(?:write|implement|code|create|build|fix|debug|refactor|optimi[sz]e)\b.{{0,60}}"
        r"\b(?:function|script|program|code|query|class|regex|regular expression|sql|algorithm|method|unit tests?|loop|macro|bug)\b"
        r"|\b(?:my|this|the following) (?:\w+ )?(?:function|code|script|program|query|loop|snippet)\b"
        r"|\bhow (?:do|can|would|to|does)\b.{0,150}\b(?:in|with|using) (?:python|java|javascript|typescript|sql|bash|excel|pandas"
        r"|numpy|matlab|ruby|php|swift|kotlin|rust|git|docker|regex|css|html|react)\b"
        r"|(?:这段|这个|下面的|以下|我的).{0,10}(?:代码|程序|函数|脚本|报错)"
        r"|(?:用|使用|写|编写|实现).{0,8}(?:python|java|c\+\+|sql|javascript|go|rust|shell|matlab|r语言)"
        rf"|{_ORDER_ZH}(?:写|编写|实现|修复|调试).{{0,20}}(?:函数|代码|脚本|程序|算法|查询|正则|类)",
    ),
    (
        "it asks for a proof or a derivation",
        rf"{_ORDER}(?:prove|disprove|derive|show that)\b|\b(?:give|write|find) (?:me )?a proof\b|证明[：:]|求证|推导"
        rf"|{_ORDER_ZH}证明(?!书|信|文件)",
    ),
    (
        "it asks for a number",
        r"\d\s*[-+*/×÷^=]\s*\d|\bhow (?:many|much|long|far|old|tall|fast|high|heavy|deep)\b|\bsquare root of \d"
        r"|\b(?:multiplied by|divided by|percent of|plus \d|minus \d|times \d)"
        rf"|{_ORDER}(?:calculate|compute|evaluate|integrate|differentiate|simplify|factor|solve)\b"
        r"|\bwhat time\b|\bprobability (?:of|that)\b"
        r"|多少|等于几|多久|多远|多高|多大|多长时间|几点|几天|概率是|解方程|方程.{0,20}的解|平方根"
        rf"|{_ORDER_ZH}(?:计算|求(?!职|助|学)|解)",
    ),
    (
        "it asks for one piece of writing, whose parts follow from each other",
        rf"{_ORDER}(?:write|tell|compose|draft|make up|invent|create|continue|finish|sing)\b.{{0,60}}"
        r"\b(?:story|stories|tale|fable|poem|haiku|sonnet|limerick|song|lyrics|novel|scene|dialogue|joke|speech|letter|e-?mail"
        r"|essay|toast|paragraph|monologue|message|reply|note)\b"
        rf"|{_ORDER_ZH}(?:写|讲|编|作|创作|续写|说).{{0,24}}(?:故事|诗|小说|歌词|散文|笑话|信|邮件|剧本|对联|作文|童话|演讲稿|日记|祝福语)",
    ),
    (
        "it asks for another form of a given text",
        rf"{_ORDER}(?:translate|rewrite|rephrase|paraphrase|summari[sz]e|proofread|shorten|convert|correct|edit)\b"
        r"|翻译[：:成]|改写|润色|缩写|(?:总结|概括)(?:一下)?(?:下面|以下|这|上面)"
        rf"|{_ORDER_ZH}(?:翻译|把.{{0,60}}(?:翻译|译成|改成|改为|转换))",
    ),
    (
        "it is a puzzle, or its steps need each other",
        r"\bif (?:all|every|some|no) \w+ (?:are|is)\b|\bstep[- ]by[- ]step\b|\b(?:riddle|puzzle|deduce|brain ?teaser)\b"
        r"|\b(?:explain|show) your reasoning\b|\bwho is (?:lying|telling the truth)\b|\bwhat comes next\b|\bmust .{0,40} be\b"
        r"|(?:如果|假设|已知)所有|谜语|谜底|推理题|逻辑题|一步一步|逐步|谁在?(?:说谎|撒谎)|下一个数",
    ),
)

_POINTS = (
    (
        "it asks for a comparison",
        r"\b(?:compare|comparison|contrast|versus|vs\.?|differences?|differ|similarities|pros and cons|better .{1,40} or)\b"
        r"|比较|对比|区别|差异|不同之处|异同|优缺点|利弊|不同|不一样|还是.{1,20}(?:更好|好|合适|划算|适合)"
        r"|^(?!(?:is|are|was|were|do|does|did|can|which|who|has|have)\b)[^.?!]{1,60} or [^.?!]{1,60} for [^.?!]+\?$",
    ),
    (
        "it asks for an overview",
        r"\b(?:overview|introduction to|introduce|guide|survey of|outline|describe|main|key|major|important)\b"
        r"|\b(?:everything about|basics|itinerary|agenda|checklist|syllabus|curriculum|tell (?:me|us) about|talk about)\b"
        r"|\b(?:(?:packing|shopping|reading|check) list)\b"
        r"|介绍|概述|综述|概览|简述|梳理|全面|主要|指南|谈谈|说说|讲讲|论述|分析|大纲|提纲|清单|计划|方案|各自|分别|行程",
    ),
    (
        "it asks for advice",
        r"\b(?:tips?|advice|suggest(?:ions?)?|recommend(?:ations?)?|ideas?|best practices|strateg(?:y|ies))\b"
        r"|\bhow (?:can|do|could|should|might|to|would)\b|\bwhat (?:should|can|could|would) (?:i|we|one|you|a|an|the)\b"
        r"|\bwhat (?:do|does|would) (?:i|we|you|one|a|an|it)(?: \w+)? (?:need|take|have to)\b"
        r"|\bhelp me (?:plan|prepare|choose|get)\b"
        r"|\bwhere (?:do|should|can|could) (?:i|we|you|one) (?:begin|start)\b"
        r"|\bi(?: am|'m)? (?:want|would like|hope|plan|trying) to\b(?! know| ask)"
        rf"|{_ORDER}(?:teach|plan|prepare|design|organi[sz]e|brainstorm|propose|outline)\b"
        r"|建议|推荐|技巧|经验|攻略|如何|怎么|怎样|咋办|注意|该做什么|准备什么",
    ),
    (
        "it asks for a list of points",
        r"\b(?:advantages?|disadvantages?|benefits?|drawbacks?|risks?|challenges?|causes|effects|impacts?|reasons|factors|types|kinds"
        r"|ways|examples|methods|roles|aspects|features|characteristics|components|parts|principles|mistakes|symptoms|signs|habits"
        r"|considerations|options|tools|trends|activities|consequences|uses|applications|stages|skills|questions|things|steps)\b"
        r"|\bhow (?:has|have|did|does|do|is|are|was|were)\b.*\b(?:chang|affect|influenc|shap|help|contribut|impact|improv)\w*"
        r"|\b(?:what|which) (?:\w+ ){0,2}\w{3,}s (?:are|do|can|should|could|would|have|help|make)\b|\bwhat are some\b"
        r"|\bwhat makes\b|\bwhy (?:do|did|have)\b|\bwhat (?:\w+ )?(?:impact|influence|role)\b"
        r"|\b(\w+) by \1\b|\b(?:to|can) think about\b"
        rf"|{_ORDER}(?:list|name|give)\b|\bwhat are\b|\bwhich \w+(?: \w+)? (?:are|make|have|do|should)\b"
        r"|\b(?:ways|lessons|arguments|criteria|opportunities|problems|issues|elements|qualities|traits|milestones)\b"
        r"|有什么(?!意思|关系)|有何|值得|适合|各种|几大|为什么会|为何会|哪些|哪几|几种|几个|几条|几点建议|列举|列出|好处|坏处|优势|劣势|优点|缺点|挑战|方法|原因|因素|影响|种类|类型|特点|方面|步骤|措施|途径|作用|症状",
    ),
)

_FACT = re.compile(
    r"^\s*(?:who|when|where|whose|what(?:'s| is| was)|which|is|are|was|were|do|does|did|can|has|have)\b"
    r"|谁|哪一年|哪年|何时|什么时候|哪里|首都|什么意思|是什么|吗",
    re.IGNORECASE,
)
_EXCLUDED, _INCLUDED = (
    tuple((reason, re.compile(pattern, re.IGNORECASE)) for reason, pattern in rules) for rules in (_ONE_TRAIN_OF_THOUGHT, _POINTS)
)


def route(question: str) -> Route:
    """Return whether the question suits sections, and why."""
    lines = (" ".join(line.split()) for line in question[:MAX_READ].splitlines())
    text = "\n".join(filter(None, lines))  # without runs of spaces, which patterns would try from each of them
    for reason, pattern in _EXCLUDED:
        if pattern.search(text):
            return Route(False, reason)
    for reason, pattern in _INCLUDED:
        if pattern.search(text):
            return Route(True, reason)
    return Route(False, "it asks for a short fact" if _FACT.search(text) else "no rule finds points that stand alone in it")
