"""Loading a checkpoint folder: dtypes, shards, tied embeddings, names, and tensors that do not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.dense import dense_logits
from tests.tiny_models import TINY
from torch import Tensor

from hasten.checkpoints.hub import SHIPPED
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import CapacityError, CheckpointError, InvalidOption, UnsupportedModel
from hasten.layers.formats.dense import DenseFormatFactory, MetaFormatFactory
from hasten.models import weights
from hasten.models.decoder import Decoder
from hasten.models.family import family_names, find_family
from hasten.models.load import LoadedModel, load_decoder, plan_decoder
from hasten.models.weights import WeightSource
from hasten.ops.torch.backend import TorchOps
from hasten.runners.backends.choose import choose_backend
from hasten.runners.backends.native import NativeBackend

PROMPT = [[5, 9, 80, 3, 3, 41]]
ONE_PER_FAMILY = ["llama-mqa-bias", "qwen2-tied", "qwen3-tied-bias", "mistral-full", "gpt2", "gpt2-untied-gelu"]


def _load(folder: Path, dtype: str = "auto") -> LoadedModel:
    return load_decoder(folder, dtype=dtype, ops=TorchOps())


def _fault(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        _load(folder)
    return str(error.value)


@pytest.fixture
def edit(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy a tiny checkpoint and change its tensors or its configuration."""

    def edited(name: str, tensors: Callable[[dict[str, Tensor]], object] | None = None, **config: object) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(tiny(name), folder)
        if tensors is not None:
            stored = load_file(folder / "model.safetensors")
            tensors(stored)
            save_file(stored, folder / "model.safetensors", {"format": "pt"})
        values = {**json.loads((folder / "config.json").read_text()), **config}
        (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))
        return folder

    return edited


def _stored(model: LoadedModel, source: WeightSource) -> Tensor:
    rows = source.rows(model.decoder)
    return rows.T if source.transposed else rows


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_the_weight_map_is_invertible(name: str, tiny: Callable[[str], Path]) -> None:
    """Every tensor of the file can be read back from the decoder, and every parameter row is filled."""
    model = _load(tiny(name))
    sources = find_family(model.config).weights(model.spec)
    stored = load_file(tiny(name) / "model.safetensors")
    assert {source.name for source in sources} == set(stored)
    assert all(torch.equal(_stored(model, source), stored[source.name]) for source in sources)
    num_filled = sum(stored[source.name].numel() for source in sources)
    assert num_filled == sum(parameter.numel() for parameter in model.decoder.parameters())


@pytest.mark.parametrize(
    "dtype, torch_dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_weights_are_converted_as_they_are_read(dtype: str, torch_dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    converted, original = _load(tiny("qwen2-tied"), dtype), _load(tiny("qwen2-tied"))
    assert converted.dtype == torch_dtype
    pairs = zip(converted.decoder.parameters(), original.decoder.parameters(), strict=True)
    assert all(torch.equal(parameter, exact.to(torch_dtype)) for parameter, exact in pairs)
    logits = dense_logits(converted.decoder, PROMPT)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, dense_logits(original.decoder, PROMPT), rtol=0.1, atol=0.25)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "absent", "torch_dtype": "float16"}, torch.float16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"dtype": "absent"}, torch.float32),  # the dtype in the file
    ],
)
def test_auto_dtype_is_that_of_the_checkpoint(config: dict[str, str], expected: torch.dtype, edit: Callable[..., Path]) -> None:
    assert _load(edit("llama-gqa", **config)).dtype == expected


def test_unknown_dtypes_are_refused(tiny: Callable[[str], Path], edit: Callable[..., Path]) -> None:
    with pytest.raises(InvalidOption, match=r"bfloat.*Did you mean 'bfloat16'"):
        _load(tiny("llama-gqa"), "bfloat")
    assert "float64" in _fault(edit("llama-gqa", dtype="float64"))


def test_sharded_equals_unsharded(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder, single = tiny("llama-sharded"), tmp_path / "single"
    single.mkdir()
    shutil.copy(folder / "config.json", single)
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(tensors, single / "model.safetensors")
    pairs = zip(_load(folder).decoder.parameters(), _load(single).decoder.parameters(), strict=True)
    assert all(torch.equal(sharded, whole) for sharded, whole in pairs)


@pytest.mark.parametrize("name", ["llama-mha-tied", "gpt2"])
def test_a_tied_lm_head_shares_the_storage_of_the_embedding(name: str, tiny: Callable[[str], Path]) -> None:
    decoder = _load(tiny(name)).decoder
    assert decoder.get_parameter("lm_head.format.weight") is decoder.get_parameter("embedding.format.weight")


def test_tied_checkpoints_may_store_embedding_or_lm_head_or_both(tiny: Callable[[str], Path], edit: Callable[..., Path]) -> None:
    def only_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    expected = dense_logits(_load(tiny("qwen2-tied")).decoder, PROMPT)
    folder = edit("qwen2-tied", only_head)
    assert torch.equal(dense_logits(_load(folder).decoder, PROMPT), expected)
    shutil.rmtree(folder)
    both = edit("qwen2-tied", lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    model = _load(both)
    assert model.spec.tie_word_embeddings
    assert torch.equal(dense_logits(model.decoder, PROMPT), expected)


def test_a_different_lm_head_is_untied_whatever_the_configuration_says(edit: Callable[..., Path]) -> None:
    """Transformers does the same."""
    from transformers import AutoModelForCausalLM

    folder = edit("qwen2-tied", lambda tensors: tensors.update({"lm_head.weight": -tensors["model.embed_tokens.weight"]}))
    model = _load(folder)
    assert not model.spec.tie_word_embeddings
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor(PROMPT)).logits[0]
    torch.testing.assert_close(dense_logits(model.decoder, PROMPT), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, prefix", [("gpt2", "transformer."), ("llama-mha-tied", "model.")])
def test_checkpoints_of_the_bare_model_load(name: str, prefix: str, tiny: Callable[[str], Path], edit: Callable[..., Path]) -> None:
    def strip(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix(prefix)] = tensors.pop(key)

    bare = dense_logits(_load(edit(name, strip)).decoder, PROMPT)
    assert torch.equal(bare, dense_logits(_load(tiny(name)).decoder, PROMPT))


def test_obsolete_tensors_are_ignored_by_their_own_family_only(edit: Callable[..., Path]) -> None:
    mask, frequencies = "transformer.h.0.attn.bias", "model.layers.2.self_attn.rotary_emb.inv_freq"
    folder = edit("gpt2", lambda tensors: tensors.update({mask: torch.ones(1, 1, 8, 8, dtype=torch.bool)}))
    _load(folder)
    shutil.rmtree(folder)
    folder = edit("llama-gqa", lambda tensors: tensors.update({frequencies: torch.ones(8)}))
    _load(folder)
    shutil.rmtree(folder)
    assert frequencies in _fault(edit("gpt2", lambda tensors: tensors.update({frequencies: torch.ones(8)})))


def test_all_mismatched_tensors_are_listed(edit: Callable[..., Path]) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(95, 64)
        tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 96, dtype=torch.int8)
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)

    message = _fault(edit("llama-gqa", spoil))
    assert "model.layers.1.self_attn.k_proj.weight [32, 64] is missing" in message
    assert "model.layers.0.mlp.up_proj.weight is [95, 64], expected [96, 64]" in message
    assert "model.layers.0.mlp.down_proj.weight is I8, expected F32" in message
    assert "model.layers.9.mlp.up_proj.weight [2, 2] is not expected" in message
    assert "4 faults" in message
    assert "layers.2" not in message


def test_a_transposed_weight_is_refused(edit: Callable[..., Path]) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    message = _fault(edit("gpt2", lambda tensors: tensors.update({name: tensors[name].T.contiguous()})))
    assert f"{name} is [256, 64], expected [64, 256]" in message


def test_a_configuration_of_other_sizes_allocates_nothing(edit: Callable[..., Path]) -> None:
    """Half a billion rows per layer would not fit into memory."""
    message = _fault(edit("llama-gqa", intermediate_size=500_000_000))
    assert "model.layers.0.mlp.up_proj.weight is [96, 64], expected [500000000, 64]" in message


@pytest.mark.parametrize("model", ["llama-gqa", "qwen2-mixed-window", "qwen3-gqa", "mistral-window", "gpt2"])
@pytest.mark.parametrize("size", [13, 10**9, 2**31, 10**18, 10**400], ids=["13", "10**9", "2**31", "10**18", "10**400"])
def test_nothing_is_built_for_sizes_that_the_weights_do_not_have(model: str, size: int, edit: Callable[..., Path]) -> None:
    """A billion layers would be a billion objects."""
    names = {"n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 1, "n_inner": 1, "vocab_size": 1}
    if model != "gpt2":
        names = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 1, "vocab_size": 1}
    for name, multiple in names.items():
        folder = edit(model, **{name: size * multiple, "layer_types": "absent", "head_dim": 16})
        assert len(_fault(folder)) < 5000
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "config, named",
    [
        ({"num_hidden_layers": 2**31}, "num_hidden_layers=2147483648 (allowed: up to 30, the number of tensors in the weights)"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps"),
        ({"num_attention_heads": 2**28, "head_dim": 2**28}, "num_attention_heads"),
        ({"rope_parameters": {"rope_theta": 1.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 1.0, "rope_type": "yarn", "factor": 2.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 1e300}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 1e30, "original_max_position_embeddings": 9}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 1e-310}}, "beta_slow"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e200}}, "attention_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10**30}}, "original_max"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": float("inf")}}, "factor"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": ["yarn", 2.0]}, "rope_scaling"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
    ],
)
def test_values_beyond_every_model_are_refused_by_name(config: dict[str, object], named: str, edit: Callable[..., Path]) -> None:
    assert named in _fault(edit("llama-gqa", **config))


@pytest.mark.parametrize("window", [2**29 - 1, 300])
def test_a_window_beyond_the_context_is_full_attention(window: int, tiny: Callable[[str], Path], edit: Callable[..., Path]) -> None:
    windowed = dense_logits(_load(edit("mistral-full", sliding_window=window)).decoder, PROMPT)
    assert torch.equal(windowed, dense_logits(_load(tiny("mistral-full")).decoder, PROMPT))


def test_weights_beyond_the_free_memory_are_refused_before_they_are_read(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, reads = sum(parameter.nbytes for parameter in _load(tiny("gpt2")).decoder.parameters()), list[str]()
    monkeypatch.setattr(Checkpoint, "read", lambda checkpoint, name: reads.append(name))
    monkeypatch.setattr(weights, "available_bytes", lambda: needed - 1)
    with pytest.raises(CapacityError, match=r"got \d+\.\d KiB; allowed: up to the \d+\.\d KiB that are free"):
        _load(tiny("gpt2"))
    with pytest.raises(CapacityError, match=r"and 1\.0 KiB for what drafts"):
        plan_decoder(Checkpoint.open(tiny("gpt2")), ops=TorchOps()).load(other_bytes=1024)
    monkeypatch.undo()
    assert reads == []
    monkeypatch.setattr(weights, "available_bytes", lambda: needed)
    _load(tiny("gpt2"))


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_planned_memory_is_that_of_the_loaded_weights(dtype: str, quantization: str | None) -> None:
    backend = choose_backend(EngineOptions(quantization=quantization, threads=1))
    assert isinstance(backend, NativeBackend)
    loaded = load_decoder(SHIPPED["demo"], dtype=dtype, ops=backend.ops, formats=backend.formats)
    planned = weights.weight_bytes(Decoder(loaded.spec, backend.ops, loaded.dtype, "meta", backend.formats(loaded.dtype).on_meta()))
    actual = backend.describe(loaded.decoder)["weight_bytes"]
    assert 0.9 * actual < planned < 1.02 * actual


def test_a_refused_allocation_is_a_capacity_error(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise MemoryError("no memory for 5 x 5 float32 weights")

    monkeypatch.setattr(DenseFormatFactory, "lm_head", refuse)
    monkeypatch.setattr(DenseFormatFactory, "on_meta", lambda f: MetaFormatFactory(f.ops, f.dtype, 32.0, 32.0, f.stored))
    with pytest.raises(CapacityError, match="the system refuses the memory"):
        _load(tiny("gpt2"))


def test_the_error_for_an_unknown_model_type_names_the_supported_ones(edit: Callable[..., Path]) -> None:
    folder = edit("llama-gqa", model_type="lama")
    with pytest.raises(UnsupportedModel) as error:
        _load(folder)
    assert all(name in str(error.value) for name in ("'lama'", *family_names(), "Did you mean 'llama'"))
    shutil.rmtree(folder)
    with pytest.raises(UnsupportedModel, match="None"):
        _load(edit("llama-gqa", model_type="absent"))


def test_progress_counts_every_byte_once(tiny: Callable[[str], Path]) -> None:
    calls: list[tuple[int, int]] = []
    load_decoder(tiny("llama-sharded"), ops=TorchOps(), progress=lambda done, total: calls.append((done, total)))
    total = sum(entry.nbytes for entry in Checkpoint.open(tiny("llama-sharded")).tensors.values())
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_loaded_decoder_is_ready_to_serve(tiny: Callable[[str], Path]) -> None:
    model = _load(tiny("llama-gqa"))
    assert not model.decoder.training
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())
    assert model.config["model_type"] == "llama"
    assert model.generation_config["eos_token_id"] == 2
    assert dataclasses.is_dataclass(model)


def test_every_family_has_tiny_models() -> None:
    assert {tiny.family.lower() for tiny in TINY.values()} == set(family_names())


NATIVE_FORMATS = ["none", "int8", "int4", "int8-weight-only", "int4-weight-only"]


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("llama-mqa-bias", "model.embed_tokens.weight"),
        ("llama-mqa-bias", "model.layers.1.mlp.down_proj.weight"),
        ("llama-mqa-bias", "model.layers.2.self_attn.k_proj.bias"),
        ("llama-mqa-bias", "model.norm.weight"),
        ("llama-mqa-bias", "lm_head.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),  # stored transposed
    ],
)
def test_weights_that_are_not_finite_are_refused_with_their_name(
    edit: Callable[..., Path], model: str, tensor: str, number: float
) -> None:
    """Quantised, a NaN would become an ordinary weight."""

    def plant(tensors: dict[str, Tensor]) -> None:
        tensors[tensor].view(-1)[-1] = number

    folder, message = edit(model, plant), f"the tensor {re.escape(tensor)} of .* holds NaN or infinity"
    for dtype in ("float32", "bfloat16", "float16"):
        with pytest.raises(CheckpointError, match=message):
            _load(folder, dtype)
        for quantization in NATIVE_FORMATS:
            options = EngineOptions(backend="cpu", threads=1, quantization=None if quantization == "none" else quantization)
            backend = choose_backend(options)
            with pytest.raises(CheckpointError, match=message):
                load_decoder(folder, dtype=dtype, ops=backend.ops, formats=backend.formats)


def test_weights_beyond_the_range_of_a_dtype_are_refused_and_others_are_not(edit: Callable[..., Path]) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e6

    folder = edit("llama-gqa", enlarge)
    _load(folder, "float32"), _load(folder, "bfloat16")
    with pytest.raises(CheckpointError, match=r"up_proj.weight of .* the dtype cannot hold.*use dtype='bfloat16'"):
        _load(folder, "float16")
