"""EAGLE-3 heads on disk: bitwise round trips, other layouts, and the refusal of invalid heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.checkpoints.formats.eagle3 import Eagle3Config, write_eagle3
from hasten.core.errors import CheckpointError, HastenError, ModelNotFound
from hasten.layers.eagle import EagleHead
from hasten.models.decoder import Decoder
from hasten.models.eagle import default_aux_layers, eagle_tensors, load_eagle
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

# Sizes of the target, "llama-gqa" of tests.tiny_models; the head's feed-forward layer has another size.
VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS = 101, 64, 3
LAYER = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
}
TARGET_IDS = torch.tensor([0, 3, 4, 9, 10, 11, 50, 99, 100])
CONFIG = Eagle3Config(
    layer=LAYER,
    draft_vocab_size=len(TARGET_IDS),
    aux_layers=(1, 2, 3),
    norm_before_residual=True,
    num_speculative_tokens=4,
    verifier="someone/a-model",
    architectures=("LlamaForCausalLM",),
    accuracies=((0.5, 0.25), (0.25, 0.125)),
)


def _tensors(draft_vocab_size: int = len(TARGET_IDS)) -> dict[str, Tensor]:
    """Return random tensors of a head, with the names and shapes that speculators documents."""
    size, layer = HIDDEN_SIZE, "layers.0."
    shapes = {
        "fc.weight": (size, 3 * size),
        "norm.weight": (size,),
        "lm_head.weight": (draft_vocab_size, size),
        **{f"{layer}{name}.weight": (size,) for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")},
        f"{layer}self_attn.q_proj.weight": (64, 2 * size),
        f"{layer}self_attn.k_proj.weight": (32, 2 * size),
        f"{layer}self_attn.v_proj.weight": (32, 2 * size),
        f"{layer}self_attn.o_proj.weight": (size, 64),
        f"{layer}mlp.gate_proj.weight": (80, size),
        f"{layer}mlp.up_proj.weight": (80, size),
        f"{layer}mlp.down_proj.weight": (size, 80),
    }
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def target(tiny: Callable[[str], Path]) -> Decoder:
    return load_decoder(tiny("llama-gqa"), ops=TorchOps()).decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_eagle3(tmp_path, CONFIG, _tensors(), TARGET_IDS, VOCAB_SIZE)
    return tmp_path


def _edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def _edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _message(folder: Path, target: Decoder, error: type[HastenError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        load_eagle(folder, target)
    return str(caught.value)


def _is_unchanged(head: EagleHead) -> bool:
    tensors, expected = eagle_tensors(head), _tensors()
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_round_trip_keeps_every_bit(folder: Path, target: Decoder, tmp_path: Path) -> None:
    loaded = load_eagle(folder, target)
    assert _is_unchanged(loaded.head)
    assert loaded.config == CONFIG
    assert torch.equal(loaded.head.target_ids, TARGET_IDS)
    assert loaded.head.spec.norm_before_residual
    assert loaded.head.spec.aux_layer_indices == (0, 1, 2)
    assert loaded.head.embedding.format is target.embedding.format
    again = tmp_path / "again"
    write_eagle3(again, loaded.config, eagle_tensors(loaded.head), loaded.head.target_ids, VOCAB_SIZE)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_files_have_the_layout_of_speculators(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == {*_tensors(), "d2t", "t2d"}
    assert stored["d2t"].dtype == torch.int64
    assert (stored["d2t"] + torch.arange(len(TARGET_IDS))).tolist() == TARGET_IDS.tolist()
    assert stored["t2d"].dtype == torch.bool
    assert stored["t2d"].nonzero()[:, 0].tolist() == TARGET_IDS.tolist()
    config = json.loads((folder / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["transformer_layer_config"] == LAYER
    assert config["draft_vocab_size"] == len(TARGET_IDS)
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["speculators_config"] == {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
        "default_proposal_method": "greedy",
        "verifier": {"name_or_path": "someone/a-model", "architectures": ["LlamaForCausalLM"]},
    }
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_draft_vocabulary_needs_no_mapping(tmp_path: Path, target: Decoder) -> None:
    config = Eagle3Config(layer=LAYER, draft_vocab_size=VOCAB_SIZE)
    write_eagle3(tmp_path, config, _tensors(VOCAB_SIZE), torch.arange(VOCAB_SIZE), VOCAB_SIZE)
    assert not {"d2t", "t2d"} & load_file(tmp_path / "model.safetensors").keys()
    assert load_eagle(tmp_path, target).head.target_ids.tolist() == list(range(VOCAB_SIZE))


def test_the_layout_of_the_paper_is_read(folder: Path, target: Decoder) -> None:
    """Tensors are named ``midlayer``, and config.json is the layer's configuration with more keys.

    The auxiliary layers are absent or in ``eagle_config``.
    """
    _edit_tensors(
        folder, lambda t: [t.__setitem__(n.replace("layers.0.", "midlayer."), t.pop(n)) for n in list(t) if "layers.0" in n]
    )
    flat = {**LAYER, "draft_vocab_size": len(TARGET_IDS), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(flat))
    head = load_eagle(folder, target).head
    assert _is_unchanged(head)
    assert not head.spec.norm_before_residual
    assert head.spec.aux_layers == default_aux_layers(NUM_LAYERS)
    _edit_config(folder, eagle_config={"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 1, 2]})
    assert load_eagle(folder, target).head.spec.aux_layers == (1, 1, 2)


def test_a_prefix_and_tensors_that_only_training_needs_are_ignored(folder: Path, target: Decoder) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name not in ("d2t", "t2d", "lm_head.weight")]:
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["verifier_norm.weight"] = torch.ones(HIDDEN_SIZE)
        tensors["verifier_lm_head.weight"] = torch.ones(len(TARGET_IDS), HIDDEN_SIZE)

    _edit_tensors(folder, change)
    assert _is_unchanged(load_eagle(folder, target).head)


def test_code_of_the_folder_is_ignored(folder: Path, target: Decoder) -> None:
    _edit_config(folder, auto_map={"": "config.Eagle3SpeculatorConfig"})
    (folder / "config.py").write_text("raise SystemExit")
    assert _is_unchanged(load_eagle(folder, target).head)


def test_an_own_embedding_is_used_and_a_copy_of_the_targets_is_not(folder: Path, target: Decoder) -> None:
    rows = target.embed(torch.arange(VOCAB_SIZE))
    _edit_tensors(folder, lambda tensors: tensors.update({"embed_tokens.weight": rows}))
    assert load_eagle(folder, target).head.embedding.format is target.embedding.format
    other = rows.clone()
    other[7, 3] += 1
    _edit_tensors(folder, lambda tensors: tensors.update({"embed_tokens.weight": other}))
    head = load_eagle(folder, target).head
    assert torch.equal(head.embedding(torch.arange(VOCAB_SIZE)), other)
    assert torch.equal(eagle_tensors(head, own_embedding=True)["embed_tokens.weight"], other)


def test_t2d_alone_defines_the_draft_vocabulary(folder: Path, target: Decoder) -> None:
    _edit_tensors(folder, lambda tensors: tensors.pop("d2t"))
    assert torch.equal(load_eagle(folder, target).head.target_ids, TARGET_IDS)


@pytest.mark.parametrize(
    "num_layers, layers", [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (7, (2, 3, 4)), (8, (2, 4, 5)), (32, (2, 16, 29))]
)
def test_default_auxiliary_layers_are_low_middle_and_high(num_layers: int, layers: tuple[int, ...]) -> None:
    assert default_aux_layers(num_layers) == layers


def test_every_tensor_that_does_not_fit_is_named(folder: Path, target: Decoder) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["layers.0.hidden_norm.weight"]
        tensors["layers.0.self_attn.q_proj.weight"] = torch.zeros(64, HIDDEN_SIZE)
        tensors["layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
        tensors["norm.weight"] = tensors["norm.weight"].to(torch.int8)

    _edit_tensors(folder, change)
    message = _message(folder, target)
    assert "4 faults" in message
    assert "layers.0.hidden_norm.weight [64] is missing" in message
    assert "layers.0.self_attn.q_proj.weight is [64, 64], expected [64, 128]" in message
    assert "layers.0.self_attn.q_proj.bias [64] is not expected" in message
    assert "norm.weight is I8" in message


@pytest.mark.parametrize("name", ["fc.weight", "norm.weight", "layers.0.self_attn.q_proj.weight"])
def test_a_tensor_that_is_not_finite_is_named(name: str, folder: Path, target: Decoder) -> None:
    _edit_tensors(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(torch.nan))
    assert f"the tensor {name} of" in _message(folder, target)


def test_one_tensor_under_two_names_is_refused(folder: Path, target: Decoder) -> None:
    _edit_tensors(folder, lambda tensors: tensors.update({"midlayer.hidden_norm.weight": torch.ones(HIDDEN_SIZE)}))
    message = _message(folder, target)
    assert "layers.0.hidden_norm.weight" in message
    assert "midlayer.hidden_norm.weight" in message


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"transformer_layer_config": {**LAYER, "hidden_size": 128}}, ("128", "64")),
        ({"target_hidden_size": 96}, ("96", "64")),
        ({"transformer_layer_config": {**LAYER, "vocab_size": 128_256}}, ("128,256", "101")),
        ({"draft_vocab_size": 102}, ("102", "101")),
        ({"eagle_aux_hidden_state_layer_ids": [2, 16, 29]}, ("2, 16, 29", "3")),
        ({"transformer_layer_config": {**LAYER, "model_type": "gpt2"}}, ("'gpt2'", "llama or qwen3")),
    ],
)
def test_a_head_of_another_model_is_refused_with_both_numbers(
    values: dict[str, Any], expected: tuple[str, ...], folder: Path, target: Decoder
) -> None:
    _edit_config(folder, **values)
    message = _message(folder, target)
    assert "does not belong to this llama model" in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"speculators_model_type": "dflash"}, "speculators_model_type='dflash' (allowed: 'eagle3')"),
        ({"norm_before_fc": True}, "norm_before_fc=True (allowed: off)"),
        ({"transformer_layer_config": {**LAYER, "num_hidden_layers": 2}}, "num_hidden_layers=2 (allowed: 1"),
        ({"draft_vocab_size": "many"}, "draft_vocab_size='many'"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, "eagle_aux_hidden_state_layer_ids=[0, 1, 2]"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state=False"),
        ({"norm_before_residual": "yes"}, "norm_before_residual='yes'"),
        ({"head_accuracies": [0.5]}, "head_accuracies=[0.5]"),
        (
            {"head_accuracies": [[0.5, 1.5]]},
            "head_accuracies=[[0.5, 1.5]] (allowed: a list of rates from 0 to 1 per draft position)",
        ),
        ({"head_accuracies": [[-0.1]]}, "head_accuracies=[[-0.1]]"),
        ({"head_accuracies": [[float("nan")]]}, "head_accuracies=[[nan]]"),
        ({"head_accuracies": [[True]]}, "head_accuracies=[[True]]"),
        ({"speculators_config": {"verifier": {"architectures": 5}}}, "verifier.architectures=5 (allowed: a list of names)"),
        ({"speculators_config": {"verifier": {"architectures": "LlamaForCausalLM"}}}, "verifier.architectures='LlamaForCausalLM'"),
        ({"speculators_config": {"verifier": {"architectures": [5]}}}, "verifier.architectures=[5]"),
        ({"speculators_config": {"verifier": {"name_or_path": 5}}}, "verifier.name_or_path=5"),
        ({"transformer_layer_config": [1]}, "transformer_layer_config=[1]"),
    ],
)
def test_a_configuration_of_another_kind_of_head_is_refused(
    values: dict[str, Any], expected: str, folder: Path, target: Decoder
) -> None:
    _edit_config(folder, **values)
    assert expected in _message(folder, target)


def _absolute(tensors: dict[str, Tensor]) -> None:
    tensors["d2t"] = TARGET_IDS.clone()


def _shifted(tensors: dict[str, Tensor]) -> None:
    tensors["d2t"][-1] -= 1


@pytest.mark.parametrize(
    "change, expected",
    [
        (_absolute, "ids from 0 to 108, allowed from 0 to 100"),  # token ids instead of offsets
        (_shifted, "8 different tokens, expected 9"),
        (lambda t: t["d2t"].sub_(1), "ids from -1"),
        (lambda t: t["t2d"].logical_not_(), "other tokens by d2t than by t2d"),
        (lambda t: t.update(t2d=torch.ones(128_256, dtype=torch.bool)), "t2d [128256], expected [101]"),
        (lambda t: t.update(d2t=torch.zeros(8, dtype=torch.int64)), "d2t [8], expected [9]"),
        (lambda t: (t.pop("d2t"), t.pop("t2d")), "101 different tokens, expected 9"),
    ],
)
def test_a_draft_vocabulary_that_does_not_map_is_refused(
    change: Callable[[dict[str, Tensor]], object], expected: str, folder: Path, target: Decoder
) -> None:
    _edit_tensors(folder, change)
    assert expected in _message(folder, target)


class _Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_pickle_is_refused_with_the_remedy_and_never_read(folder: Path, target: Decoder) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(_Trap(folder / "ran"), folder / "pytorch_model.bin")
    message = _message(folder, target)
    assert "pytorch_model.bin" in message
    assert "weights_only=True" in message
    assert not (folder / "ran").exists()


def test_a_folder_without_a_head_is_refused(tmp_path: Path, target: Decoder) -> None:
    assert "nowhere" in _message(tmp_path / "nowhere", target, ModelNotFound)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.as_json()))
    assert "no weights" in _message(tmp_path, target, ModelNotFound)


@pytest.mark.parametrize(
    "layer",
    [
        {"model_type": "gpt2", "n_layer": 2**31},
        {"model_type": "mistral", "num_hidden_layers": 10**9},
        {"vocab_size": 10**18},
        {"hidden_size": 2**40},
        {"max_position_embeddings": 10**400},
        {"rope_theta": 1.0},
    ],
    ids=lambda layer: " ".join(layer),
)
def test_no_layer_is_built_for_sizes_that_the_weights_do_not_have(layer: dict[str, Any], folder: Path, target: Decoder) -> None:
    _edit_config(folder, transformer_layer_config={**LAYER, **layer})
    assert len(_message(folder, target)) < 3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint16], ids=str)
def test_a_mapping_of_another_dtype_is_refused(dtype: torch.dtype, folder: Path, target: Decoder) -> None:
    _edit_tensors(folder, lambda tensors: tensors.update(d2t=tensors["d2t"].to(dtype)))
    assert "expected I64" in _message(folder, target)
