"""``read_config``: the settings in a GGUF file, in the form of ``config.json``.

``read_generation_config`` has the form of ``generation_config.json``. Values are passed on as they are where the model family
checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.gguf.names import NAME_TABLES
from hasten.checkpoints.gguf.token_ids import names_no_token
from hasten.core.errors import CheckpointError, UnsupportedModel, nearest, show

# The GGUF key after the architecture -> the key of config.json.
_LLAMA_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Settings that change the computation in ways that hasten's families do not have. Off is 0, false, or 0 for each layer.
_UNSUPPORTED = (
    "expert_count",
    "nextn_predict_layers",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.temperature_scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "use_parallel_residual",
    "rope.dimension_sections",
    "rope.scaling.yarn_log_multiplier",
)
_YARN_KEYS = {
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# Recommended sampling, which llama.cpp's converter copies from generation_config.json.
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message
# Files often name one end only, and generation_config.json named several. llama.cpp finds the others by their text, too.
_END_TOKENS = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<end_of_turn>"}
_END_TOKENS |= {"</s>", "<EOT>", "<｜end▁of▁sentence｜>"}
_SPECIAL_TYPES = (3, 4)  # control tokens, and those of the user; "</s>" is text in some vocabularies


def find_architecture(file: GgufFile) -> str:
    """Return ``general.architecture``. Raises ``UnsupportedModel`` for one that hasten does not have."""
    name = file.metadata.get("general.architecture")
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(
            f"{file.path} is no language model",
            got=f"general.type={show(kind)}",
            allowed="'model'",
            remedy="Give the model's own file",
        )
    if not isinstance(name, str) or name not in NAME_TABLES:
        suggestion = nearest(name, NAME_TABLES)
        raise UnsupportedModel(
            f"hasten does not support the architecture of {file.path}",
            got=show(name),
            allowed=", ".join(NAME_TABLES),
            remedy=suggestion if suggestion.startswith("Did") else "Use a model of one of these architectures",
        )
    return name


def read_config(file: GgufFile, rope_factors: Sequence[float] | None) -> dict[str, Any]:
    """Return the configuration that the model's family reads.

    ``rope_factors`` is the content of the tensor ``rope_freqs``, if there is one.
    Raises ``CheckpointError`` for missing settings, and ``UnsupportedModel`` for settings that hasten does not implement.
    """
    architecture = find_architecture(file)
    settings = _Settings(file, architecture)
    keys = _GPT2_KEYS if architecture == "gpt2" else _LLAMA_KEYS
    missing = [f"{architecture}.{key}" for key in keys if settings.get(key) is None]
    if missing:
        raise CheckpointError(
            f"{file.path} lacks settings of its model", got=", ".join(missing), remedy="Convert the original model again"
        )
    for key in _UNSUPPORTED:
        value = settings.get(key)
        if any(value) if isinstance(value, list) else value:
            settings.refuse(key, "off")
    if settings.get("attention.causal") is False:
        settings.refuse("attention.causal", "true")
    embedding = file.tensors.get("token_embd.weight")
    config: dict[str, Any] = {
        "model_type": architecture,
        **{name: settings.uniform(key) for key, name in keys.items()},
        "vocab_size": embedding.shape[0] if embedding is not None else settings.get("vocab_size"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if architecture != "gpt2":
        config |= _read_attention(settings, file) | _read_rope(settings, rope_factors)
        window = settings.get("attention.sliding_window")
        if window and architecture == "llama":  # llama.cpp's name for Mistral too, which has the same tensors
            config |= {"model_type": "mistral", "sliding_window": window}
        elif window:
            settings.refuse("attention.sliding_window", "off")
    settings.check()
    return config


def read_generation_config(file: GgufFile) -> dict[str, Any]:
    """Return recommended sampling, the id of the first token, and those that end a text or a turn."""
    tokens = {key: file.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", *_END_KEYS)}
    tokens = {key: None if names_no_token(value) else value for key, value in tokens.items()}
    ends: list[object] = []
    for key in _END_KEYS:
        if tokens[key] is not None and tokens[key] not in ends:
            ends.append(tokens[key])
    ends += [token_id for token_id in _find_end_tokens(file) if token_id not in ends]
    values = {name: file.metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING_KEYS.items()}
    values |= {"bos_token_id": tokens["bos_token_id"], "eos_token_id": ends}
    return {key: value for key, value in values.items() if value not in (None, [])}


def _find_end_tokens(file: GgufFile) -> list[int]:
    """Return the ids of special tokens whose text says that they end a text, a turn or a message."""
    tokens, types = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not isinstance(types, list):
        return []
    pairs = enumerate(zip(tokens, types, strict=False))  # the tokenizer's reader checks the lengths
    return [token_id for token_id, (token, kind) in pairs if kind in _SPECIAL_TYPES and token in _END_TOKENS]


class _Settings:
    """The metadata of one architecture. Faults are collected; ``check`` raises them all."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file, self._architecture = file, architecture
        self._faults: list[str] = []

    def get(self, key: str) -> Any:
        return self._file.metadata.get(f"{self._architecture}.{key}")

    def uniform(self, key: str) -> Any:
        """Return the value; that of all layers, if there is one for each layer."""
        value = self.get(key)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            self.refuse(key, "one value for all layers")
            return None
        return value[0]

    def refuse(self, key: str, allowed: str) -> None:
        self._faults.append(f"{self._architecture}.{key}={show(self.get(key))} (allowed: {allowed})")

    def check(self) -> None:
        if self._faults:
            raise UnsupportedModel(
                f"{self._file.path} has settings that hasten does not support: {'; '.join(self._faults)}",
                remedy="Use another model",
            )


def _read_attention(settings: _Settings, file: GgufFile) -> dict[str, Any]:
    config = {"num_key_value_heads": settings.uniform("attention.head_count_kv")}
    head_dim = settings.get("attention.key_length")
    hidden_size, num_heads = settings.uniform("embedding_length"), settings.uniform("attention.head_count")
    if head_dim is None and type(hidden_size) is int and type(num_heads) is int and num_heads > 0:
        head_dim = hidden_size // num_heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key) not in (None, head_dim):
            settings.refuse(key, f"the head dim, {show(head_dim)}")
    config["head_dim"] = head_dim
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    return config


def _read_rope(settings: _Settings, factors: Sequence[float] | None) -> dict[str, Any]:
    """Return the base and the scaling of the rotary embedding.

    A factor without a type is linear, as in llama.cpp.
    """
    config = {} if (theta := settings.get("rope.freq_base")) is None else {"rope_theta": theta}
    factor = settings.get("rope.scaling.factor") or settings.get("rope.scale_linear")
    kind = settings.get("rope.scaling.type")
    if kind in (None, "linear"):
        kind = "none" if factor in (None, 0.0, 1.0) else "linear"
    if kind not in ("none", "linear", "yarn"):
        settings.refuse("rope.scaling.type", "none, linear, yarn")
    if factors is not None and kind != "none":
        settings.refuse("rope.scaling.type", "none beside the tensor rope_freqs")
    if settings.get("rope.scaling.yarn_ext_factor") not in (None, 1.0, -1.0):
        settings.refuse("rope.scaling.yarn_ext_factor", "1, or -1 for the default")
    if settings.get("rope.scaling.attn_factor") not in (None, 1.0):
        settings.refuse("rope.scaling.attn_factor", "1")
    if factors is not None:
        return config | {"rope_scaling": {"rope_type": "frequency_factors", "factors": list(factors)}}
    if kind == "linear":
        return config | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        values = {name: settings.get(f"rope.scaling.{key}") for key, name in _YARN_KEYS.items()}
        if settings.get("rope.scaling.attn_factor") is not None:
            del values["attention_factor"]  # a file that llama.cpp saved, where 1 is the default and not the factor of the model
        scaling: Mapping[str, Any] = {name: value for name, value in values.items() if value is not None}
        return config | {"rope_scaling": {"rope_type": "yarn", "factor": factor, **scaling}}
    return config
