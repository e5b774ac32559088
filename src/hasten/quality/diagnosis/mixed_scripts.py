"""Mixed scripts: letters of a script that does not belong, and characters that were decoded wrongly.

English terms in Chinese, formulas, quoted foreign words and words in brackets belong; so does each script of the prompt, of
sentences of its own, and of each language that prompt or output names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MAX_CHARACTERS = 1 << 17
MAX_HOMOGLYPHS = 4  # letters below which a run within a word of another alphabet is a splice
MIN_SPLICE = 2  # letters of a script that belongs nowhere
MIN_SENTENCE_SHARE = 0.6  # of the letters of a sentence in the script
HAN_LETTERS = 3  # letters of an alphabet that an ideograph counts as
# Script -> its letters. Han and the two kana are one, as Japanese uses them together; Hangul texts may quote Han.
_SCRIPTS = {
    "latin": r"A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ",
    "greek": r"Ͱ-Ͽἀ-῿",
    "cyrillic": r"Ѐ-ԯ",
    "hebrew": r"֐-׿",
    "arabic": r"؀-ۿݐ-ݿ",
    "devanagari": r"ऀ-ॿ",
    "thai": r"฀-๿",
    "han": r"⺀-⿟々〇぀-ヿ㐀-䶿一-鿿豈-﫿",
    "hangul": r"ᄀ-ᇿ㄰-㆏가-힯",
    "armenian": r"԰-֏",
    "georgian": r"Ⴀ-ჿ",
    "bengali": r"ঀ-৿",
    "tamil": r"஀-௿",
}
_RUNS = re.compile("|".join(f"(?P<{name}>[{letters}]+)" for name, letters in _SCRIPTS.items()))
_NAMES = {
    "greek": r"greek|希腊",
    "cyrillic": r"russian|ukrainian|bulgarian|serbian|cyrillic|俄[语文]|乌克兰|西里尔",
    "hebrew": r"hebrew|yiddish|希伯来",
    "arabic": r"arabic|persian|farsi|urdu|阿拉伯|波斯",
    "devanagari": r"hindi|sanskrit|nepali|marathi|devanagari|印地|梵[语文]",
    "thai": r"thai|泰[语文]",
    "han": r"chinese|mandarin|cantonese|japanese|kanji|hanzi|pinyin|中[文国]|汉[语字]|日[语文本]",
    "hangul": r"korean|hangul|韩[语文国]|朝鲜",
    "armenian": r"armenian|亚美尼亚",
    "georgian": r"georgian|格鲁吉亚",
    "bengali": r"bengali|bangla|孟加拉",
    "tamil": r"tamil|泰米尔",
}
# UTF-8 that was read as Latin-1 or Windows-1252, and the best known results of reading it as GBK.
_MOJIBAKE = re.compile(
    r"[ÃÂ][\x80-\xbf\u0152-\u0178\u2013-\u2122]|â€[\x80-\xbf™œ˜¦“”\x9d]|[äåæçèé][\x80-\xbf]{2}|ï¿½|锟斤拷|烫烫烫"
)
_OPENERS, _CLOSERS = "(（[「『《“‘\"'`", ")）]」』》”’\"'`"
_HOMOGLYPHS = {"latin", "cyrillic", "greek"}
_SENTENCES = re.compile(r"[\n.!?。！？…:：]+")


def measure_mixed_scripts(output: ObservedOutput) -> Measurement:
    """Return the share of the characters that do not belong."""
    text = output.text[:MAX_CHARACTERS]
    return _replaced(text) or _mojibake(text) or _splices(text, output.prompt or "") or NOTHING


def _replaced(text: str) -> Measurement | None:
    """Bytes that are no UTF-8; at the very end, a character was cut and is no fault of this kind."""
    marks = [match.start() for match in re.finditer("(?<![\"'`])\ufffd+", text.rstrip("\ufffd"))]
    if not marks:
        return None
    return _found("replaced", marks[0], len(marks), text, "\ufffd")


def _mojibake(text: str) -> Measurement | None:
    found = list(_MOJIBAKE.finditer(text))
    return _found("mojibake", found[0].start(), sum(len(match[0]) for match in found), text, found[0][0]) if found else None


def _splices(text: str, prompt: str) -> Measurement | None:
    """Return the runs of letters of a script that neither the prompt nor most of the output uses."""
    runs = list(_RUNS.finditer(text))
    counts = _counts(text)
    names = f"{prompt[:MAX_CHARACTERS]}\n{text}".lower()
    prompt_scripts = {str(run.lastgroup) for run in _RUNS.finditer(prompt[:MAX_CHARACTERS])}
    expected = {script for script, words in _NAMES.items() if re.search(words, names)} | prompt_scripts | {"latin"}
    expected |= {script for script, count in counts.items() if 2 * count >= counts.total()} | _scripts_of_sentences(text)
    if "hangul" in expected:
        expected.add("han")
    wrong = [run for index, run in enumerate(runs) if _is_splice(index, runs, expected, text)]
    length = sum(len(run[0]) for run in wrong)
    if length < MIN_SPLICE and not any(_is_within_a_word(run, text) for run in wrong):
        return None
    return _found("splice", wrong[0].start(), length, text, wrong[0][0])


def _scripts_of_sentences(text: str) -> set[str]:
    """Return the scripts that have sentences of their own, as a second language of a text has."""
    scripts: set[str] = set()
    for sentence in _SENTENCES.split(text):
        counts = _counts(sentence)
        scripts |= {name for name, count in counts.items() if count > MIN_SPLICE and count >= MIN_SENTENCE_SHARE * counts.total()}
    return scripts


def _counts(text: str) -> Counter[str]:
    """Return the letters of each script; an ideograph is a word or half of one."""
    counts = Counter[str]()
    for run in _RUNS.finditer(text):
        counts[str(run.lastgroup)] += len(run[0]) * (HAN_LETTERS if run.lastgroup == "han" else 1)
    return counts


def _is_splice(index: int, runs: list[re.Match[str]], expected: set[str], text: str) -> bool:
    run = runs[index]
    script = str(run.lastgroup)
    if script in _HOMOGLYPHS and _is_within_a_word(run, text):
        return True
    if script in expected or _is_quoted(run, text):
        return False
    return not (script == "greek" and len(run[0]) == 1)  # a symbol of a formula


def _is_within_a_word(run: re.Match[str], text: str) -> bool:
    """Whether a letter of another alphabet stands directly beside the run, as in no language."""
    sides = [text[run.start() - 1 : run.start()], text[run.end() : run.end() + 1]]
    neighbours = [match.lastgroup for side in sides if side and (match := _RUNS.match(side))]
    if run.lastgroup == "greek" and len(run[0]) == 1:
        return False  # Δm, 5μm
    return (
        any(side in _HOMOGLYPHS and side != run.lastgroup for side in neighbours) and len(run[0]) < 4 and run.lastgroup != "latin"
    )


def _is_quoted(run: re.Match[str], text: str) -> bool:
    """Whether the run stands in brackets or quotes, or a gloss in brackets follows it."""
    before = text[max(0, run.start() - 60) : run.start()]
    after = text[run.end() : run.end() + 60]
    opener = next((sign for sign in reversed(before) if sign in _OPENERS + _CLOSERS or sign in ".。\n"), "")
    closer = next((sign for sign in after if sign in _OPENERS + _CLOSERS or sign in ".。\n"), "")
    if opener and closer and opener in _OPENERS and closer in _CLOSERS:
        return True
    gloss = after.lstrip()
    return bool(gloss) and gloss[0] in "(（"


def _found(kind: str, offset: int, length: int, text: str, quote: str) -> Measurement:
    share = length / max(1, len(text))
    script = unicodedata.name(quote[0], "UNKNOWN").split()[0].title() if kind == "splice" else ""
    return Measurement(
        value=share, is_fault=True, kind=kind, offset=offset, details={"share": share, "quote": quote[:30], "script": script}
    )
