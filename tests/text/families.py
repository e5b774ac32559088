"""``FAMILIES``: the tokenizers of well-known model families, with small vocabularies that are trained here.

Normalizer, pre-tokenizer, decoder, post-processor, added tokens and ``tokenizer_config.json`` are those of the families'
checkpoints. The files are written to a folder with ``write``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Punctuation, Split

CORPUS = (
    "the cat sat on the mat, and the other cat sat with the dog in 2023 and 1999. 这是一个测试,我们说中文。今天天气很好。 café été "
    "Don't you say we'll sell it for 1,234.56? \n\n\tdef hello(name):\n    return f'hello {name}'\n" * 3
)
GPT2_RULE = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_RULE = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_RULE = LLAMA3_RULE.replace("{1,3}", "")
QWEN3_5_RULE = CONTRACTIONS + (r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN_RULE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_RULE = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM_RULE = r" ?[^(\s|[.,!?…。，、।۔،])]+"


@dataclass(frozen=True)
class Family:
    name: str
    make: Callable[[], Tokenizer]
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json
    values: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json
    files: Mapping[str, str] = field(default_factory=dict)  # others, by name
    is_rebuilt: bool = False  # transformers' class reads other tokens than tokenizer.json says

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.make().to_str(pretty=False), encoding="utf-8")
        values = {"model_max_length": 4096, **self.values}
        files = {"config.json": json.dumps(self.config), "tokenizer_config.json": json.dumps(values), **self.files}
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        return folder


@cache
def byte_vocabulary(*rules: str) -> models.BPE:
    """Return byte-level BPE, trained on texts that are split by these rules."""
    tokenizer = Tokenizer(models.BPE())
    splits = [Digits(individual_digits=True) if rule == "digits" else Split(Regex(rule), "isolated") for rule in rules]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer.model


@cache
def sentencepiece_vocabulary(unknown: str, bos: str, eos: str) -> dict[str, Any]:
    """Return the BPE model of SentencePiece with byte fallback, as JSON."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = [unknown, bos, eos, *byte_tokens]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False, limit_alphabet=60)
    tokenizer.train_from_iterator([CORPUS], trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def template(text: str, tokenizer: Tokenizer) -> processors.PostProcessor:
    tokens = [token for token in text.split() if not token.startswith("$")]
    pair = text + " " + " ".join(f"{part}:1" for part in text.replace("$A", "$B").split())
    return processors.TemplateProcessing(
        single=text, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)]
    )


def byte_level(
    vocabulary: Sequence[str],
    splits: Sequence[PreTokenizer],
    special: Sequence[str],
    *,
    plain: Sequence[str] = (),
    nfc: bool = False,
    post: str = "",
    use_regex: bool = False,
    add_prefix_space: bool = False,
    ignore_merges: bool = False,
) -> Callable[[], Tokenizer]:
    """``special`` and ``plain`` are added tokens. ``post`` is a template; without one, the post-processor is ByteLevel."""

    def make() -> Tokenizer:
        model = json.loads(Tokenizer(byte_vocabulary(*vocabulary)).to_str())["model"]
        model["ignore_merges"] = ignore_merges
        tokenizer = with_model(model)
        tokenizer.normalizer = normalizers.NFC() if nfc else None
        last = ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
        offsets = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = processors.Sequence([offsets, template(post, tokenizer)]) if post else offsets
        return tokenizer

    return make


def with_model(model: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def sentencepiece(
    *,
    tokens: tuple[str, str, str] = ("<unk>", "<s>", "</s>"),
    prepend: bool = True,
    metaspace: bool = False,
    split: bool = False,
    strip: bool = True,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    rstrip: bool = False,
    post: str = "<s> $A",
) -> Callable[[], Tokenizer]:
    """The space is ``▁``: by normalizers, or with ``metaspace`` by the pre-tokenizer (transformers' class since 4.40)."""

    def make() -> Tokenizer:
        tokenizer = with_model(sentencepiece_vocabulary(*tokens))
        if metaspace:
            tokenizer.pre_tokenizer = Metaspace("▁", prepend_scheme="first" if prepend else "never", split=False)
        else:
            replace = normalizers.Replace(" ", "▁")
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
            if split:
                tokenizer.pre_tokenizer = Split(" ", "merged_with_previous")
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
        added = [AddedToken(token, normalized=False, special=True) for token in tokens]
        tokenizer.add_special_tokens(added)
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=rstrip) for t in special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
        tokenizer.post_processor = template(post, tokenizer) if post else None
        return tokenizer

    return make


def added_tokens_decoder(make: Callable[[], Tokenizer]) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    tokens = make().get_added_tokens_decoder()
    return {str(index): {name: getattr(token, name) for name in names} for index, token in tokens.items()}


def isolated(rule: str) -> Split:
    return Split(Regex(rule), "isolated")


def tokens(bos: str | None, eos: str | None, pad: str | None = None, **others: Any) -> dict[str, Any]:
    return {"bos_token": bos, "eos_token": eos, "pad_token": pad, **others}


def families() -> list[Family]:
    """Return all families, the order being that of the list of names in the tests' output."""
    return [*_llama_like(), *_qwen_like(), *_gpt_like(), *_sentencepiece_like()]


END = "<|endoftext|>"
SMOLLM = ("<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
QWEN_SPECIAL = (END, "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DEEPSEEK_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
DEEPSEEK_PLAIN = ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>")


def _llama_like() -> list[Family]:
    llama3 = byte_level([LLAMA3_RULE], [isolated(LLAMA3_RULE)], LLAMA3_SPECIAL, post="<|begin_of_text|> $A", ignore_merges=True)
    llama3_values = tokens("<|begin_of_text|>", "<|eot_id|>", clean_up_tokenization_spaces=True, chat_template=CHATML)
    deepseek = byte_level(
        [r"\p{N}{1,3}", DEEPSEEK_RULE],
        [isolated(r"\p{N}{1,3}"), isolated("[一-龥぀-ゟ゠-ヿ]+"), isolated(DEEPSEEK_RULE)],
        DEEPSEEK_SPECIAL,
        plain=DEEPSEEK_PLAIN,
        post="<｜begin▁of▁sentence｜> $A",
    )

    coder_rules = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
    coder = byte_level(
        coder_rules, [*map(isolated, coder_rules), Digits(True)], DEEPSEEK_SPECIAL, post="<｜begin▁of▁sentence｜> $A"
    )
    deepseek_values = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        **tokens(*({"__type": "AddedToken", "content": token, "lstrip": False} for token in DEEPSEEK_SPECIAL)),
    }
    tekken_special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]")
    tekken = byte_level([TEKKEN_RULE], [isolated(TEKKEN_RULE)], tekken_special, post="<s> $A", ignore_merges=True)
    smollm = byte_level(["digits", GPT2_RULE], [Digits(True)], (END, *SMOLLM), use_regex=True)
    smollm_values = tokens("<|im_start|>", "<|im_end|>", "<|im_end|>", unk_token=END, tokenizer_class="GPT2Tokenizer")
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    llama, mistral = {"model_type": "llama"}, {"model_type": "mistral"}
    return [
        Family("llama-3", llama3, llama, {**llama3_values, **fast, "added_tokens_decoder": added_tokens_decoder(llama3)}),
        Family("llama-3-no-class", llama3, llama, llama3_values),
        Family("llama-3-as-llama", llama3, llama, {**llama3_values, "tokenizer_class": "LlamaTokenizer"}),
        Family("deepseek-v3", deepseek, {"model_type": "deepseek_v3"}, deepseek_values),
        Family("deepseek-r1-distill-qwen", deepseek, {"model_type": "qwen2"}, deepseek_values, is_rebuilt=True),
        Family("deepseek-r1-distill-llama", deepseek, llama, deepseek_values),
        Family("deepseek-coder", coder, llama, deepseek_values),
        Family("mistral-nemo", tekken, mistral, {**tokens("<s>", "</s>", unk_token="<unk>"), "tokenizer_class": "GPT2Tokenizer"}),
        Family("mistral-small", tekken, mistral, {**tokens("<s>", "</s>", "<pad>"), "tokenizer_class": "LlamaTokenizerFast"}),
        Family("smollm", smollm, llama, smollm_values),
        Family("smollm2-fast", smollm, llama, {**smollm_values, **fast}, {"chat_template.jinja": CHATML}),
        Family("smollm3", llama3, {"model_type": "smollm3"}, {**llama3_values, **fast}),
        Family("olmo-2", llama3, {"model_type": "olmo2"}, {**llama3_values, "tokenizer_class": "GPT2Tokenizer"}),
        Family("phi-4", llama3, {"model_type": "phi3"}, {**llama3_values, "tokenizer_class": "GPT2Tokenizer"}),
        Family("exaone", smollm, llama, {**tokens("[BOS]", "<|im_end|>"), **fast}),
    ]


def _qwen_like() -> list[Family]:
    split = [isolated(QWEN2_RULE)]
    qwen = byte_level([QWEN2_RULE], split, QWEN_SPECIAL, nfc=True)
    qwen3 = byte_level([QWEN2_RULE], split, QWEN_SPECIAL, plain=("<think>", "</think>", "<tool_call>"), nfc=True)
    qwen3_5 = byte_level([QWEN3_5_RULE], [isolated(QWEN3_5_RULE)], QWEN_SPECIAL, plain=("<think>",), nfc=True)
    values = {
        **tokens(None, "<|im_end|>", END),
        "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": list(QWEN_SPECIAL[1:]),
        "add_prefix_space": False,
        "chat_template": CHATML,
        "split_special_tokens": False,
    }
    listed = {**values, "added_tokens_decoder": added_tokens_decoder(qwen3)}
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    vision = {**values, "extra_special_tokens": {"image_token": "<|vision_start|>"}}
    return [
        Family("qwen2", qwen, {"model_type": "qwen2"}, values),
        Family("qwen2.5-fast", qwen, {"model_type": "qwen2"}, {**values, "tokenizer_class": "Qwen2TokenizerFast"}),
        Family("qwen3", qwen3, {"model_type": "qwen3"}, listed),
        Family("qwen3-no-class", qwen3, {"model_type": "qwen3"}, {**tokens(None, END), "chat_template": named}),
        Family("qwen2.5-vl", qwen, {"model_type": "qwen2_5_vl"}, vision),
        Family("qwen3.5", qwen3_5, {"model_type": "qwen3_5"}, {**listed, "tokenizer_class": "Qwen3_5Tokenizer"}),
        Family("qwen2-tokenizer-in-llama", qwen, {"model_type": "llama"}, values),
    ]


def _gpt_like() -> list[Family]:
    gpt2 = byte_level([GPT2_RULE], [], [END], use_regex=True)
    opt = byte_level([GPT2_RULE], [], ["</s>", "<pad>"], use_regex=True, post="</s> $A")
    neox = byte_level([GPT2_RULE], [], [END, "<|padding|>"], plain=["        ", "    ", "  "], nfc=True, use_regex=True)
    digits = byte_level(["digits", GPT2_RULE], [Digits(True)], [END, "<fim_prefix>"], use_regex=True)
    falcon = byte_level(
        [GPT2_RULE],
        [Punctuation("contiguous"), ByteLevel(add_prefix_space=False), Digits(False), isolated("[0-9][0-9][0-9]")],
        [">>TITLE<<", END],
        plain=[],
    )
    bloom = byte_level([BLOOM_RULE], [isolated(BLOOM_RULE)], ["<unk>", "<s>", "</s>", "<pad>"])
    phi2 = byte_level([GPT2_RULE], [], [END], plain=["\t\t", "    ", "  "], use_regex=True)
    command_r = byte_level(
        ["digits", GPT2_RULE],
        [Digits(True)],
        ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"],
        nfc=True,
        use_regex=True,
        post="<BOS_TOKEN> $A",
    )
    glm = byte_level([LLAMA3_RULE], [isolated(LLAMA3_RULE)], [END, "[gMASK]", "<sop>", "<|user|>"], post="[gMASK] <sop> $A")
    with_digits = byte_level([GPT2_RULE], [Digits(True)], [END], use_regex=True)
    special_tokens_map = json.dumps({"eos_token": {"content": END, "lstrip": False}})
    gpt2_tokens = {**tokens(END, END), "unk_token": END}
    starcoder = {**gpt2_tokens, "tokenizer_class": "GPT2Tokenizer"}
    return [
        Family("gpt2", gpt2, {"model_type": "gpt2"}),
        Family("gpt2-special-tokens-map", gpt2, {"model_type": "gpt2"}, {}, {"special_tokens_map.json": special_tokens_map}),
        Family(
            "opt",
            opt,
            {"model_type": "opt"},
            {**tokens("</s>", "</s>", "<pad>", unk_token="</s>"), "tokenizer_class": "GPT2Tokenizer"},
        ),
        Family("pythia", neox, {"model_type": "gpt_neox"}, {**gpt2_tokens, "tokenizer_class": "GPTNeoXTokenizer"}),
        Family("starcoder2", digits, {"model_type": "starcoder2"}, starcoder),
        Family("gpt2-with-digits", with_digits, {"model_type": "gpt2"}, starcoder, is_rebuilt=True),
        Family("granite-3", digits, {"model_type": "granite"}, starcoder),
        Family("falcon", falcon, {"model_type": "falcon"}, {**tokens(None, END), "tokenizer_class": "PreTrainedTokenizerFast"}),
        Family("bloom", bloom, {"model_type": "bloom"}, {**tokens("<s>", "</s>"), "tokenizer_class": "BloomTokenizerFast"}),
        Family("phi-2", phi2, {"model_type": "phi"}, {**gpt2_tokens, "tokenizer_class": "CodeGenTokenizer"}),
        Family("command-r", command_r, {"model_type": "cohere"}, {"tokenizer_class": "CohereTokenizer"}),
        Family("glm-4", glm, {"model_type": "glm4"}, {**tokens(None, END), "tokenizer_class": "PreTrainedTokenizer"}),
    ]


def _sentencepiece_like() -> list[Family]:
    llama2 = sentencepiece()
    metaspace = sentencepiece(metaspace=True, special=["[INST]", "[/INST]"])
    phi3 = sentencepiece(special=["<|user|>", "<|assistant|>", "<|end|>"], rstrip=True, post="")
    yi = sentencepiece(prepend=False, strip=False, special=["<|im_start|>", "<|im_end|>"], post="")
    gemma_tokens = ("<unk>", "<bos>", "<eos>")
    gemma = sentencepiece(
        tokens=gemma_tokens,
        prepend=False,
        split=True,
        strip=False,
        special=["<start_of_turn>"],
        plain=["\n\n", "▁▁"],
        post="<bos> $A",
    )
    values = {
        **tokens("<s>", "</s>", unk_token="<unk>"),
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "sp_model_kwargs": {},
    }
    gemma_values = {**tokens("<bos>", "<eos>", unk_token="<unk>"), "tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
    llama, mistral = {"model_type": "llama"}, {"model_type": "mistral"}
    return [
        Family("llama-2", llama2, llama, values, is_rebuilt=True),
        Family("llama-2-added-eos", llama2, llama, {**values, "add_eos_token": True}, is_rebuilt=True),
        Family("tinyllama", llama2, llama, {**values, "legacy": True, "chat_template": CHATML}, is_rebuilt=True),
        Family("mistral-7b", llama2, mistral, values),
        Family("mistral-7b-v0.3", metaspace, mistral, {**values, "tokenizer_class": "LlamaTokenizerFast"}),
        Family("codellama-as-llama", metaspace, llama, values),
        Family("llama-2-no-class", llama2, llama, {"bos_token": "<s>", "eos_token": "</s>"}),
        Family("phi-3", phi3, {"model_type": "phi3"}, {**values, "eos_token": "<|end|>"}),
        Family("yi", yi, llama, {**values, "add_bos_token": False, "add_prefix_space": False}),
        Family("internlm-3", sentencepiece(metaspace=True), {"model_type": "internlm3"}, values),
        Family("gemma", gemma, {"model_type": "gemma"}, gemma_values),
        Family("gemma-2", gemma, {"model_type": "gemma2"}, {**gemma_values, "added_tokens_decoder": added_tokens_decoder(gemma)}),
        Family(
            "gemma-3",
            gemma,
            {"model_type": "gemma3_text"},
            {**gemma_values, "boi_token": "<start_of_turn>"},
        ),
        Family("llama-2-tokenizer-in-qwen2", llama2, {"model_type": "qwen2"}, values, is_rebuilt=True),
    ]
