"""Finite languages by brute force, and a tokenizer whose tokens cut their texts in several ways."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from llguidance import LLMatcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hasten.core.structured_outputs import StructuredOutputs
from hasten.sampling.guides.base import MaskWords
from hasten.sampling.guides.grammar_compiler import GrammarCompiler
from hasten.sampling.guides.grammar_guide import GrammarGuide

MERGES = ["ab", "bc", "abc", "ca", "aa", "aaaa", '{"', '":', '{"a', "1,", "11"]


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of all bytes and of some longer tokens; its last token ends an output."""
    alphabet = bytes_to_unicode()
    vocabulary = {character: token_id for token_id, character in enumerate(alphabet.values())}
    merges = []
    for text in MERGES:
        characters = "".join(alphabet[byte] for byte in text.encode())
        first = max(n for n in range(1, len(characters)) if characters[:n] in vocabulary and characters[n:] in vocabulary)
        merges.append((characters[:first], characters[first:]))
        vocabulary[characters] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


TOKENIZER = make_tokenizer()
EOS = TOKENIZER.token_to_id("</s>")
VOCAB_SIZE = TOKENIZER.get_vocab_size() + 3  # the model has rows of logits that are no tokens
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
TEXTS = [bytes(_BYTES[c] for c in TOKENIZER.id_to_token(token_id)) for token_id in range(EOS)]  # the bytes of each token
TOKENS = {text: token_id for token_id, text in enumerate(TEXTS)}


@functools.cache
def compiler() -> GrammarCompiler:
    """Return a compiler for that vocabulary, for the whole run: its process takes some time to start."""
    return GrammarCompiler(TOKENIZER.to_str(), VOCAB_SIZE, [EOS])


def make_guide(form: StructuredOutputs, max_cursors: int = 1) -> GrammarGuide:
    return GrammarGuide(compiler().compile(form), VOCAB_SIZE, [EOS], max_cursors)


def fresh_matcher(form: StructuredOutputs, token_ids: Sequence[int]) -> LLMatcher:
    """Return a matcher of its own that has read the tokens one by one."""
    matcher = compiler().compile(form)
    for token_id in token_ids:
        assert matcher.consume_token(token_id)
    return matcher


def bits(mask_W: MaskWords | None) -> set[int]:
    """Return the tokens that a mask allows."""
    assert mask_W is not None
    return {t for t in range(len(mask_W) * 32) if mask_W[t // 32] >> np.int32(t % 32) & 1}


def text_of(token_ids: Sequence[int]) -> bytes:
    return b"".join(TEXTS[token_id] for token_id in token_ids)


class Language:
    """A form and all its texts."""

    def __init__(self, form: StructuredOutputs, texts: Iterable[str]) -> None:
        self.form, self.texts = form, frozenset(text.encode() for text in texts)

    def allowed(self, token_ids: Sequence[int]) -> set[int]:
        """Return the tokens that may come next."""
        before = text_of(token_ids)
        found = {t for t, text in enumerate(TEXTS) if any(each.startswith(before + text) for each in self.texts)}
        return found | ({EOS} if before in self.texts else set())

    def common(self, token_ids: Sequence[int]) -> bytes:
        """Return the text that all outputs go on with after these tokens."""
        before = text_of(token_ids)
        rests = [each[len(before) :] for each in self.texts if each.startswith(before)]
        shortest = min(rests, key=len)
        return next(shortest[:n] for n in range(len(shortest), -1, -1) if all(rest.startswith(shortest[:n]) for rest in rests))


def regex(pattern: str, alphabet: str, max_length: int) -> Language:
    texts = ("".join(characters) for n in range(max_length + 1) for characters in itertools.product(alphabet, repeat=n))
    return Language(StructuredOutputs(regex=pattern), (text for text in texts if re.fullmatch(pattern, text)))


LANGUAGES = {
    "counted": regex("[abc]{2,4}", "abc", 5),
    "branches": regex("a(b|bc|cab)?c|ca{0,8}", "abc", 9),
    "runs": Language(StructuredOutputs(regex="a{3,9}"), ("a" * n for n in range(3, 10))),
    "choice": Language(
        StructuredOutputs(choice=("abc", "ab", "abcabc", "ca", "é", "你好", '"', "\n")),
        {"abc", "ab", "abcabc", "ca", "é", "你好", '"', "\n"},
    ),
    "one": Language(StructuredOutputs(choice=("abcabcaaaa",)), {"abcabcaaaa"}),
    "enum": Language(
        StructuredOutputs(json={"enum": ["a", 1, 11, None, ["a", 1]]}, disable_any_whitespace=True),
        {'"a"', "1", "11", "null", '["a",1]'},
    ),
    "object": Language(
        StructuredOutputs(
            json={
                "type": "object",
                "properties": {"a": {"enum": [1, 11]}, "b": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            disable_any_whitespace=True,
        ),
        frozenset(f'{{"a":{a}{b}}}' for a in (1, 11) for b in ("", ',"b":true', ',"b":false')),
    ),
    "lark": Language(
        StructuredOutputs(grammar='start: "a" b? "c"\nb: "b" | "bb" b'),
        {"ac"} | {f"a{'b' * n}c" for n in range(1, 40, 2)},
    ),
    "gbnf": Language(
        StructuredOutputs(grammar='root ::= "ab" [abc] tail\ntail ::= "a" | "aa"'),
        (f"ab{c}{tail}" for c in "abc" for tail in ("a", "aa")),
    ),
}
