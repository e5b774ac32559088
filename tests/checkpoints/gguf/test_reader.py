"""Whole tiny models from GGUF: tensors and settings equal those of transformers, and of the checkpoint that was converted."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tests.gguf_files import write_gguf
from tests.models.dense import dense_logits
from tests.tiny_models import TINY, tiny_reference
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, UnsupportedModel
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.wiring.generation_defaults import default_sampling_params
from hasten.layers.formats.stored_matrix import dequantize
from hasten.layers.spec import LayerSpec
from hasten.models.family import find_family
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

# GGUF has no setting for these: windows of some layers, dynamic scaling, and activations other than llama.cpp's.
NOT_IN_GGUF = {
    "llama-gelu",
    "llama-dynamic",
    "gpt2-untied-gelu",
    "gpt2-unscaled",
    *(name for name in TINY if "qwen" in name and "window" in name),
}
CONVERTED = [name for name in TINY if name not in NOT_IN_GGUF]
PROMPT = [[5, 9, 80, 3, 3, 41, 7, 22, 22, 60, 11, 9, 70, 2, 4]]  # longer than Mistral's window


def contents(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return every tensor as [in, out] or [out, in], as Hugging Face stores it, float32."""
    tensors = {name: checkpoint.read(name).float() for name in checkpoint.tensors}
    for name, matrix in checkpoint.matrices.items():
        weights = dequantize(matrix, 0, matrix.shape[0])
        transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        tensors[name] = weights.T if transposed else weights
    return tensors


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize("name", ["llama-mqa-bias", "llama-mha-tied", "qwen2-tied", "qwen3-gqa", "gpt2", "gpt2-untied-gelu"])
def test_tensors_equal_transformers(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers reads the same file. It needs the configuration: it drops head dims, biases and GPT-2's sizes."""

    def add_tokenizer(writer: GGUFWriter) -> None:  # transformers counts the tokens
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"<0x{i:02X}>" for i in range(40)])
        writer.add_token_scores([0.0] * 40)
        writer.add_token_types([6] * 40)

    types = {"*q_proj*": "Q4_0", "*k_proj*": "Q5_1", "*v_proj*": "F16", "*c_attn*": "Q5_0", "*embed*": "BF16", "*": "Q8_0"}
    write_gguf(tmp_path / "model.gguf", tiny(name), types, edit=add_tokenizer)
    config = AutoConfig.from_pretrained(tiny(name))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32, config=config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    expected = {key: value for key, value in theirs.state_dict().items() if key not in tied}
    checkpoint = Checkpoint.open(tmp_path / "model.gguf")
    assert len(checkpoint.matrices) > 10
    assert_equal(contents(checkpoint), expected)


def _with_rotary_of(layer: LayerSpec, other: LayerSpec) -> LayerSpec:
    """Return ``layer`` with the rotary embedding of ``other``, which has the same frequencies up to rounding."""
    ours, theirs = layer.attention.rotary, other.attention.rotary
    assert ours is not None
    assert theirs is not None
    assert torch.allclose(ours.inverse_frequencies(), theirs.inverse_frequencies(), rtol=2.4e-7, atol=0.0)
    return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rotary=theirs))


@pytest.mark.parametrize("types", ["BF16", "Q4_1"])
@pytest.mark.parametrize("name", CONVERTED)
def test_tensors_and_settings_equal_the_converted_checkpoint(
    name: str, types: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    held = write_gguf(tmp_path / "model.gguf", tiny(name), types)
    checkpoint = Checkpoint.open(tmp_path / "model.gguf")
    assert_equal(contents(checkpoint), held)
    original = Checkpoint.open(tiny(name))
    ours, theirs = (find_family(values.config).spec(values.config) for values in (checkpoint, original))
    if name == "llama-llama3":  # the file has the factors of the scaling, and not its settings
        ours = dataclasses.replace(
            ours, layers=tuple(_with_rotary_of(*pair) for pair in zip(ours.layers, theirs.layers, strict=True))
        )
    assert dataclasses.replace(ours, model_type=theirs.model_type) == theirs
    assert ours.model_type == ("llama" if name == "mistral-full" else theirs.model_type)
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2]}


@pytest.mark.parametrize("name", CONVERTED)
def test_logits_of_plain_files_equal_transformers(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny(name), "F32")
    model = load_decoder(tmp_path / "model.gguf", ops=TorchOps())
    expected = tiny_reference(name)(torch.tensor(PROMPT)).logits
    assert model.dtype == torch.float32
    assert torch.allclose(dense_logits(model.decoder, PROMPT), expected.reshape(-1, expected.shape[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-head-dim", "qwen3-gqa", "gpt2"])
def test_rows_are_decoded_a_few_at_a_time(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny(name), "Q5_1")
    for matrix in Checkpoint.open(tmp_path / "model.gguf").matrices.values():
        whole = matrix.rows(0, matrix.shape[0]).dequantize()
        pieces = [matrix.rows(i, min(i + 7, matrix.shape[0])).dequantize() for i in range(0, matrix.shape[0], 7)]
        assert torch.equal(torch.cat(pieces), whole)
        assert matrix.input_order() is None
        assert matrix.nbytes == matrix.shape[0] * matrix.shape[1] // 32 * 24
        assert matrix.spec.describe() == "Q5_1, groups of 32, offsets"


def test_a_split_file_is_one_checkpoint(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    held = write_gguf(tmp_path / "m.gguf", tiny("llama-gqa"), "Q8_0", tensors_per_part=9)
    assert_equal(contents(Checkpoint.open(tmp_path / "m-00001-of-00004.gguf")), held)


def test_tensors_may_lie_at_any_address(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    types, starts = {"*q_proj*": "Q4_0", "*k_proj*": "Q6_K", "*v_proj*": "F16", "*gate*": "BF16"}, set()
    for length in range(1, 5):  # the writer leaves out empty strings

        def edit(writer: GGUFWriter, length: int = length) -> None:
            writer.add_custom_alignment(1)
            writer.add_string("filler", "x" * length)

        held = write_gguf(tmp_path / "model.gguf", tiny("llama-gqa"), types, edit=edit)
        assert_equal(contents(Checkpoint.open(tmp_path / "model.gguf")), held)
        starts |= {tensor.start % 4 for tensor in GgufFile.open(tmp_path / "model.gguf").tensors.values()}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(("types", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "float32"), ("F32", "float32")])
def test_the_dtype_is_that_of_most_weights(types: str, dtype: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny("llama-gqa"), types)
    assert Checkpoint.open(tmp_path / "model.gguf").config["dtype"] == dtype


def test_a_file_with_quantised_matrices_computes_in_float32(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", tiny("llama-gqa"), {"*down_proj*": "Q4_0", "*": "F16"})
    assert Checkpoint.open(tmp_path / "model.gguf").config["dtype"] == "float32"


def edited(tiny: Callable[[str], Path], folder: Path, edit: Callable[[GGUFWriter], None], name: str = "llama-gqa") -> Path:
    write_gguf(folder / "model.gguf", tiny(name), "Q8_0", edit=edit)
    return folder / "model.gguf"


def with_tensor(name: str, values: np.ndarray, kind: str = "F32") -> Callable[[GGUFWriter], None]:
    return lambda writer: writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])


def setting(key: str, value: Any) -> Callable[[GGUFWriter], None]:
    """Return an edit that replaces or adds a metadata value; None removes it."""

    def edit(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)

    return edit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "architecture .*'mamba'.* allowed: llama, qwen2, qwen3, gpt2"),
        ("general.architecture", "qwen", "Did you mean 'qwen"),
        ("general.architecture", None, "got None"),
        ("general.type", "adapter", "no language model"),
        ("llama.expert_count", 8, r"llama.expert_count=8 \(allowed: off\)"),
        ("llama.attention.value_length", 8, r"value_length=8 \(allowed: the head dim, 16\)"),
        ("llama.rope.dimension_count", 8, r"dimension_count=8 \(allowed: the head dim, 16\)"),
        ("llama.rope.scaling.type", "longrope", "scaling.type='longrope'"),
        ("llama.attention.head_count_kv", [2, 1, 2], r"head_count_kv=\[2, 1, 2\] \(allowed: one value for all layers\)"),
        ("llama.attention.causal", False, "causal=False"),
        ("llama.logit_scale", 2.0, "logit_scale=2.0"),
        ("llama.rope.dimension_sections", [8, 4, 4, 0], r"dimension_sections=\[8, 4, 4, 0\]"),
        ("llama.rope.scaling.attn_factor", 0.5, r"attn_factor=0.5 \(allowed: 1\)"),
    ],
)
def test_unsupported_settings_are_named(key: str, value: Any, message: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Checkpoint.open(edited(tiny, tmp_path, setting(key, value)))


def test_missing_settings_are_all_named(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        del writer.kv_data[0]["llama.context_length"], writer.kv_data[0]["llama.block_count"]

    with pytest.raises(CheckpointError, match=r"lacks settings .*llama.context_length, llama.block_count"):
        Checkpoint.open(edited(tiny, tmp_path, edit))


@pytest.mark.parametrize("name", ["qwen2-tied", "qwen3-gqa"])
def test_windows_of_unknown_layers_are_refused(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    key = f"{name[:5]}.attention.sliding_window"
    with pytest.raises(UnsupportedModel, match=f"{key}=128"):
        Checkpoint.open(edited(tiny, tmp_path, setting(key, 128), name))


def test_optional_settings_have_llama_cpp_defaults(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        for key in ("rope.freq_base", "attention.head_count_kv", "attention.key_length", "attention.value_length"):
            del writer.kv_data[0][f"llama.{key}"]

    config = Checkpoint.open(edited(tiny, tmp_path, edit, "llama-mha-tied")).config
    attention = find_family(config).spec(config).layers[0].attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 4, 16)
    assert attention.rotary is not None
    assert attention.rotary.theta == 10_000.0


def test_a_value_for_each_layer_may_be_the_same(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    config = Checkpoint.open(edited(tiny, tmp_path, setting("llama.attention.head_count_kv", [2, 2, 2]))).config
    assert config["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda writer: writer.add_rope_scaling_yarn_ext_factor(0.5), r"yarn_ext_factor=0.5 \(allowed: 1, or -1"),
        (with_tensor("rope_freqs.weight", np.ones(8, np.float32)), "scaling.type='yarn' .*none beside the tensor rope_freqs"),
    ],
)
def test_other_rotary_scalings_are_refused(
    add: Callable[[GGUFWriter], None], message: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Checkpoint.open(edited(tiny, tmp_path, add, "llama-yarn"))


@pytest.mark.parametrize(
    ("kind", "factor", "scaling"),
    [
        ("linear", 1.0, None),
        ("linear", None, None),
        ("none", 4.0, None),
        (None, None, None),
        (None, 4.0, {"rope_type": "linear", "factor": 4.0}),
        ("linear", 4.0, {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_scaling_without_type_is_linear(
    kind: str | None, factor: float | None, scaling: dict[str, Any] | None, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    def edit(writer: GGUFWriter) -> None:
        setting("llama.rope.scaling.type", kind)(writer)
        setting("llama.rope.scaling.factor", factor)(writer)

    assert Checkpoint.open(edited(tiny, tmp_path, edit)).config.get("rope_scaling") == scaling


def test_yarn_settings_reach_the_family(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_yarn_beta_fast(24.0)
        writer.add_rope_scaling_yarn_beta_slow(2.0)
        writer.add_rope_scaling_yarn_attn_factor(0.75)

    config = Checkpoint.open(edited(tiny, tmp_path, edit, "llama-yarn")).config
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "attention_factor": 0.75,
    }
    assert find_family(config).spec(config).layers[0].attention.rotary.attention_factor == 0.75


@pytest.mark.parametrize("name", ["llama-gqa", "llama-yarn", "qwen3-gqa"])
def test_settings_that_llama_cpp_saves_with_their_defaults_change_nothing(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """``llama_model_save_to_file`` writes every setting; those of other architectures have their defaults."""
    defaults = {
        "attn_logit_softcapping": 50.0,
        "attention.causal": True,
        "attention.scale": 0.0,
        "attention.sliding_window": 0,
        "embedding_scale": 0.0,
        "expert_count": 0,
        "logit_scale": 0.0,
        "rope.dimension_sections": [0, 0, 0, 0],
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_ext_factor": -1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
    }
    if name != "llama-yarn":
        defaults |= {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0, "rope.scaling.original_context_length": 256}

    def edit(writer: GGUFWriter) -> None:
        for key, value in defaults.items():
            setting(f"{name.split('-')[0]}.{key}", value)(writer)

    ours, theirs = (Checkpoint.open(path).config for path in (edited(tiny, tmp_path, edit, name), tiny(name)))
    assert find_family(ours).spec(ours) == find_family(theirs).spec(theirs)


def test_recommended_sampling_is_a_generation_setting(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        writer.add_sampling_temp(0.6)
        writer.add_sampling_top_k(20)
        writer.add_sampling_top_p(0.95)
        writer.add_sampling_min_p(0.05)
        writer.add_sampling_penalty_repeat(1.1)

    checkpoint = Checkpoint.open(edited(tiny, tmp_path, edit))
    params = default_sampling_params(checkpoint.generation_config, checkpoint.folder)
    expected = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
    assert params == SamplingParams.from_dict(expected)


def test_tokens_that_end_a_text_or_a_turn_are_generation_settings(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(2)

    assert Checkpoint.open(edited(tiny, tmp_path, edit)).generation_config == {"bos_token_id": 1, "eos_token_id": [2, 7]}


def test_special_tokens_say_by_their_text_that_they_end_a_turn(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Files of Llama 3 and Qwen name one end only; their generation_config.json had two or three."""

    def edit(writer: GGUFWriter) -> None:
        texts = ["a", "</s>", "<|end_of_text|>", "<|eom_id|>", "<|im_end|>", "<|im_start|>", "b"]
        writer.add_token_list([*texts, *(f"[PAD{index}]" for index in range(256 - len(texts)))])
        writer.add_token_types([1, 1, 3, 3, 4, 3, 5, *[5] * (256 - len(texts))])

    generation_config = Checkpoint.open(edited(tiny, tmp_path, edit)).generation_config
    assert generation_config == {"bos_token_id": 1, "eos_token_id": [2, 3, 4]}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32)), "does not know .*'blk.0.attn_sinks.weight'"),
        (
            with_tensor("output.bias", np.zeros((4, 136), np.uint8), "IQ4_XS"),
            r"'output.bias' \[4, 256\] is IQ4_XS.* matrices of Q4_0",
        ),
        (with_tensor("output.bias", np.zeros((2, 84), np.uint8), "Q2_K"), "is Q2_K"),
        (with_tensor("output.bias", np.zeros((2, 17), np.uint8), "MXFP4"), "is MXFP4"),
        (with_tensor("output.bias", np.zeros(34, np.uint8), "Q8_0"), r"'output.bias' \[32\] is Q8_0"),
        (with_tensor("output.bias", np.zeros(8, np.int32), "I32"), "is I32"),
        (with_tensor("rope_freqs.weight", np.ones(8, np.float16), "F16"), r"no list of factors.*F16 \[8\]"),
        (with_tensor("rope_freqs.weight", np.ones((2, 4), np.float32)), "no list of factors"),
        (with_tensor("rope_freqs.weight", np.ones(2**16 + 1, np.float32)), r"no list of factors.*F32 \[65537\]"),
        (with_tensor("blk.0.attn_q.bias", np.zeros(24, np.float32)), "no whole heads: got 24 rows and head dim 16"),
    ],
)
def test_unreadable_tensors_are_named(
    edit: Callable[[GGUFWriter], None], message: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(edited(tiny, tmp_path, edit))


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [float("nan")], [1.0] * 7 + [-2.0]])
def test_bad_frequency_factors_are_refused(factors: list[float], tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, with_tensor("rope_freqs.weight", np.array(factors, np.float32)))
    config = Checkpoint.open(path).config
    with pytest.raises(UnsupportedModel, match=r"factors=.* \(allowed: 8 numbers above 0"):
        find_family(config).spec(config)


def test_scales_that_are_not_finite_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, lambda writer: None)
    name = "model.layers.1.mlp.down_proj.weight"
    matrix = Checkpoint.open(path).matrices[name]
    start = matrix.tensor.start + 5 * matrix.nbytes // matrix.shape[0]  # the first scale of row 5
    content = bytearray(path.read_bytes())
    content[start : start + 2] = np.float16("inf").tobytes()
    path.write_bytes(content)
    matrix = Checkpoint.open(path).matrices[name]
    assert matrix.rows(0, 5).codes_OI.shape == (5, 96)
    with pytest.raises(CheckpointError, match=r"blk.1.ffn_down.weight .* NaN or infinite"):
        matrix.rows(5, 6)


def test_a_file_that_changes_after_its_header_was_read_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, lambda writer: None)
    checkpoint = Checkpoint.open(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        checkpoint.read("model.norm.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.matrices["lm_head.weight"].rows(0, 1)


def test_a_folder_with_the_suffix_is_a_folder(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(tiny("gpt2"))
    assert Checkpoint.open(tmp_path / "m.gguf").config == json.loads((tiny("gpt2") / "config.json").read_text())
