"""``BYTE_PAIR_RULES``: how a text becomes words for byte-level BPE.

The keys are the values of GGUF's ``tokenizer.ggml.pre``, names that llama.cpp gives a meaning. The table says the same in the terms
of ``tokenizers``. Unicode normalization is that of the checkpoint's ``tokenizer.json``, which llama.cpp leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from hasten.text import split_patterns


@dataclass(frozen=True, slots=True)
class BytePairRules:
    """``patterns`` split the text one after another; ``gpt2_pattern`` is the last of them where it is set.

    ``ignore_merges``: a word that is a token needs no merges. ``add_bos``: what a file without ``add_bos_token`` means.
    """

    patterns: tuple[str, ...] = ()
    gpt2_pattern: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """Return the pre-tokenizer, which ends in the alphabet of bytes."""
        splits = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=self.gpt2_pattern)])


_GPT2 = BytePairRules(gpt2_pattern=True)
_DIGITS = BytePairRules((split_patterns.DIGIT,), gpt2_pattern=True)
_LLAMA3 = BytePairRules((split_patterns.LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = BytePairRules((split_patterns.QWEN2,))
BYTE_PAIR_RULES: Mapping[str, BytePairRules] = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "jais", "trillion"), _GPT2),
    "olmo": BytePairRules(gpt2_pattern=True, nfc=True),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "minerva-7b", "mellum2"), _DIGITS),
    "command-r": BytePairRules((split_patterns.DIGIT,), gpt2_pattern=True, nfc=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), BytePairRules((split_patterns.LLAMA3,))),
    "qwen2": BytePairRules((split_patterns.QWEN2,), nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez"), _QWEN2),
    "qwen35": BytePairRules((split_patterns.QWEN3_5,), nfc=True),
    "tekken": BytePairRules((split_patterns.TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), BytePairRules((split_patterns.GPT4O,))),
    "seed-coder": BytePairRules((split_patterns.SEED_CODER,)),
    "deepseek-coder": BytePairRules(split_patterns.DEEPSEEK_CODER),
}
