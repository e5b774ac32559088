"""Where transformers reads other token ids than ``tokenizer.json`` says.

For some classes, transformers 5 takes only the vocabulary from the file and builds the rest itself. ``tests/text`` compares the
table here with the installed transformers, which is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.normalizers import NFC, Normalizer, Replace
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Split

from hasten.text import split_patterns

_PROBES = (
    "In 2023 it cost €1,234.56, don't you WE'LL say? café naïve (50%)",
    "  two  spaces\n\n\tdef f(x):\r\n    return x**2  # ok\n",
    "我们今天说中文,好吗?한국어 العربية हिन्दी ไทย",
    "e\u0301 A\u030a ﬁ Å 👩\u200d💻 🙂x y\u3000z ...!!",
)


class RebuildingClass(NamedTuple):
    """What a class of transformers puts before the vocabulary, and its default special tokens.

    ``pre_tokenizer`` takes the values of ``tokenizer_config.json``.
    """

    normalizer: Callable[[], Normalizer] | None
    pre_tokenizer: Callable[[Mapping[str, Any]], PreTokenizer]
    special_tokens: Mapping[str, str]


def _adds_space(values: Mapping[str, Any], default: bool) -> bool:
    value = values.get("add_prefix_space")
    return default if value is None else bool(value)


def _byte_level(values: Mapping[str, Any]) -> PreTokenizer:
    return ByteLevel(add_prefix_space=_adds_space(values, False))


def _digits_and_bytes(values: Mapping[str, Any]) -> PreTokenizer:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), _byte_level(values)])


def _split_and_bytes(regex: str) -> Callable[[Mapping[str, Any]], PreTokenizer]:
    return lambda values: pre_tokenizers.Sequence(
        [Split(Regex(regex), "isolated"), ByteLevel(add_prefix_space=_adds_space(values, False), use_regex=False)]
    )


def _metaspace(values: Mapping[str, Any]) -> PreTokenizer:
    scheme = "never" if not _adds_space(values, True) else "always" if values.get("legacy") else "first"
    return Metaspace("▁", prepend_scheme=scheme, split=False)


_END = "<|endoftext|>"
_GPT2_TOKENS = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
_QWEN2_TOKENS = {"unk_token": _END, "eos_token": _END, "pad_token": _END}
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_COHERE_TOKENS = {
    "unk_token": "<UNK>",
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}
CLASSES: Mapping[str, RebuildingClass] = {
    "GPT2Tokenizer": RebuildingClass(None, _byte_level, _GPT2_TOKENS),
    "GPTNeoXTokenizer": RebuildingClass(NFC, _byte_level, {**_GPT2_TOKENS, "pad_token": "<|padding|>"}),
    "CohereTokenizer": RebuildingClass(NFC, _digits_and_bytes, _COHERE_TOKENS),
    "Qwen2Tokenizer": RebuildingClass(NFC, _split_and_bytes(split_patterns.QWEN2), _QWEN2_TOKENS),
    "Qwen3_5Tokenizer": RebuildingClass(NFC, _split_and_bytes(split_patterns.QWEN3_5), _QWEN2_TOKENS),
    "LlamaTokenizer": RebuildingClass(None, _metaspace, _LLAMA_TOKENS),
    "GemmaTokenizer": RebuildingClass(lambda: Replace(" ", "▁"), lambda values: Split(" ", "merged_with_previous"), _GEMMA_TOKENS),
}
# The classes that transformers registers for model types. "" is the one that reads the file as it is.
REGISTERED: Mapping[str, str] = {
    **dict.fromkeys(("gpt2", "phi", "opt", "gptj", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("mistral", "mistral3", "mixtral", "olmo2", "olmo3", "granite", "granitemoe", "glm", "glm4", "stablelm"), ""),
    **dict.fromkeys(("phi3", "nemotron", "internlm3", "minicpm3", "jamba"), ""),
}
# For these, transformers takes its registered class even if the checkpoint names another one.
REGISTERED_WINS = ("qwen2", "qwen3_5", "qwen3_5_moe", "phi3", "nemotron", "internlm3", "minicpm3", "jamba")


def rebuilding_class(tokenizer: Tokenizer, values: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return the class that rebuilds this tokenizer; None if transformers reads the file as it is.

    ``values`` are those of ``tokenizer_config.json``, ``config`` is that of the model.
    """
    model_type = config.get("model_type")
    named = values.get("tokenizer_class") or config.get("tokenizer_class") or ""
    named = named.removesuffix("Fast") if isinstance(named, str) else ""
    registered = REGISTERED.get(model_type) if isinstance(model_type, str) else None
    if named == "LlamaTokenizer" and model_type not in REGISTERED_WINS and isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None  # transformers looks into the file for this one
    if registered is not None and (not named or registered == "" or model_type in REGISTERED_WINS):
        named = registered
    return named if named in CLASSES else None


def differing_probe(tokenizer: Tokenizer, values: Mapping[str, Any], name: str) -> str | None:
    """Return a text that the class ``name`` splits into other tokens than ``tokenizer`` does, or None."""
    if not isinstance(tokenizer.model, models.BPE):
        return None
    rebuilding = CLASSES[name]
    rebuilt = Tokenizer(tokenizer.model)
    if rebuilding.normalizer is not None:
        rebuilt.normalizer = rebuilding.normalizer()
    rebuilt.pre_tokenizer = rebuilding.pre_tokenizer(values)
    rebuilt.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    for probe in _PROBES:
        if rebuilt.encode(probe).tokens != tokenizer.encode(probe, add_special_tokens=False).tokens:
            return probe
    return None
