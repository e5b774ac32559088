"""A quantised checkpoint computes what the same weights in float32 compute, on both backends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.paged_runner import PagedRunner
from tests.models.dense import dense_logits
from tests.quantized_models import Scheme, decode, quantize, register
from tests.tiny_models import TINY, TinyModel
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import CapacityError, CheckpointError
from hasten.layers.formats import stored_matrix
from hasten.layers.formats.base import StoredPart, WeightFormat
from hasten.layers.formats.dense import Dense
from hasten.layers.formats.fused import Fused
from hasten.layers.formats.packed import Packed, PackedFormatFactory
from hasten.models import weights
from hasten.models.load import LoadedModel, load_decoder, plan_decoder, read_spec
from hasten.models.weights import leaf_formats, weight_bytes
from hasten.ops.cpu.cpu import Dtype
from hasten.ops.cpu.matrix import Weights
from hasten.ops.torch.backend import TorchOps
from hasten.runners.backends.base import Backend
from hasten.runners.backends.choose import choose_backend
from hasten.runners.backends.native import NativeBackend

PROMPTS = ([5, 9, 80, 3, 3, 41], [7, 7, 90])
BACKENDS = ("torch", "cpu")
INT4, INT3, GROUPS_OF_32, REORDERED = Scheme(), Scheme(bits=3), Scheme(bits=8, group_size=32), Scheme(reorder=5)


@pytest.fixture(autouse=True)
def scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr(stored_matrix, "CHUNK_WEIGHTS", 64 * 64)  # several chunks of the larger matrices


def load(folder: Path, backend: str, **options: str) -> tuple[Backend, LoadedModel]:
    kernels = choose_backend(EngineOptions(backend=backend, threads=1, **options), read_spec(Checkpoint.open(folder)))
    return kernels, load_decoder(folder, dtype=options.get("dtype", "auto"), ops=kernels.ops, formats=kernels.formats)


def logits(folder: Path, backend: str, **options: str) -> Tensor:
    return torch.cat(PagedRunner(*load(folder, backend, **options), 16).prompt_logits(*PROMPTS))


def all_layers(name: str) -> Scheme | None:
    return INT4 if ".layers." in name or ".h." in name else None


def by_part(schemes: dict[str, Scheme | None], rest: Scheme | None = None) -> Callable[[str], Scheme | None]:
    return lambda name: next((scheme for part, scheme in schemes.items() if part in name), rest)


# Each with a name of a checkpoint: what is quantised, and how many fused matrices are of several formats.
CASES: dict[str, tuple[str, Callable[[str], Scheme | None], int]] = {
    "layers": ("llama-gqa", all_layers, 0),
    "everything": ("llama-gqa", lambda _: INT4, 0),
    "lm_head only": ("llama-gqa", by_part({"lm_head": REORDERED}), 0),
    "tied embedding": ("llama-mha-tied", lambda _: INT4, 0),
    "tied embedding left alone": ("llama-mha-tied", all_layers, 0),
    "one order of inputs": ("llama-gqa", lambda _: REORDERED, 0),
    "no native form": ("llama-gqa", lambda _: Scheme(group_size=8), 0),
    "orders that differ": ("llama-gqa", by_part({"k_proj": Scheme(reorder=9), "up_proj": Scheme(reorder=9)}, REORDERED), 6),
    "schemes that differ": ("llama-mqa-bias", by_part({"v_proj": GROUPS_OF_32, "gate_proj": INT3}, INT4), 6),
    "plain parts": ("llama-mqa-bias", by_part({"q_proj": None, "up_proj": None}, INT4), 6),
    "a part that ends within 16 rows": ("llama-odd", by_part({"k_proj": None}, INT4), 0),
    "gpt2": ("gpt2", all_layers, 0),
    "gpt2 with its embeddings": ("gpt2", lambda _: INT4, 0),
    "gpt2 untied": ("gpt2-untied-gelu", by_part({"c_fc": None, "wpe": None, "c_attn": REORDERED}, INT4), 0),
}


@pytest.fixture
def folders(
    tiny: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, tuple[Path, Path]]:
    case: str = request.param
    name, scheme_of, _ = CASES[case]
    monkeypatch.setitem(TINY, "llama-odd", TinyModel("Llama", {"head_dim": 12}))  # 24 rows of k and of v
    return case, quantize(tiny(name), tmp_path, scheme_of, transposed=name.startswith("gpt2"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folders", CASES, indirect=True)
def test_logits_are_those_of_the_dequantised_weights(folders: tuple[str, tuple[Path, Path]], backend: str) -> None:
    case, (quantised, plain) = folders
    settings = json.loads((quantised / "config.json").read_text())["quantization_config"]
    assert settings["matrices"]
    found, expected = logits(quantised, backend), logits(plain, backend)
    check_logits(found, expected, exact=backend == "torch" or case == "no native form")
    decoder = load(quantised, "cpu")[1].decoder
    assert sum(isinstance(part, Fused) for part in decoder.modules()) == CASES[case][2]


def check_logits(found: Tensor, expected: Tensor, *, exact: bool) -> None:
    """``exact``: bit for bit. Native products of codes round their inputs to 16 bits."""
    assert torch.equal(found, expected) if exact else float((found - expected).norm() / expected.norm()) < 1e-3


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def set_settings(folder: Path, change: Callable[[dict[str, dict[str, int]]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"]["matrices"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def quantised(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    return quantize(tiny("llama-gqa"), tmp_path, all_layers)[0]


def fault(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_decoder(folder, ops=TorchOps())
    return str(error.value)


DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"


def test_a_missing_matrix_is_named(quantised: Path) -> None:
    """Its tensors stay in the file, where nothing expects them."""
    message = fault(set_settings(quantised, lambda matrices: matrices.pop(DOWN)))
    assert f"{DOWN} [64, 96] is missing" in message and f"{DOWN}.codes [64, 96] is not expected" in message


def test_a_matrix_of_no_model_is_named(quantised: Path) -> None:
    other = "model.layers.7.mlp.down_proj.weight"

    def add(tensors: dict[str, Tensor]) -> None:
        tensors.update({f"{other}.{part}": tensors[f"{DOWN}.{part}"].clone() for part in ("codes", "scales", "offsets")})

    edit(quantised, add)
    assert f"{other} [64, 96] is not expected" in fault(set_settings(quantised, lambda matrices: matrices.update({other: {}})))


def test_a_matrix_of_another_shape_is_named(quantised: Path) -> None:
    edit(quantised, lambda tensors: tensors.update({f"{DOWN}.codes": tensors[f"{DOWN}.codes"][:48].clone()}))
    assert f"{DOWN} is [48, 96], expected [64, 96]" in fault(quantised)


def test_a_quantised_vector_is_refused(quantised: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors.update({f"{NORM}.{part}": tensors[f"{DOWN}.{part}"].clone() for part in ("codes", "scales", "offsets")})
        del tensors[NORM]

    edit(quantised, add)
    assert f"{NORM} is [64, 96], expected [64]" in fault(set_settings(quantised, lambda matrices: matrices.update({NORM: {}})))


def test_a_transposed_tensor_is_expected_as_out_by_in_once_quantised(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """GPT-2 stores [in, out], and a quantised matrix is always [out, in]."""
    folder, _ = quantize(tiny("gpt2"), tmp_path, all_layers)  # not transposed
    assert "transformer.h.0.attn.c_attn.weight is [64, 192], expected [192, 64]" in fault(folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scale_that_overflows_is_named(quantised: Path, backend: str) -> None:
    edit(quantised, lambda tensors: tensors[f"{DOWN}.scales"].fill_(3e38))
    with pytest.raises(CheckpointError, match=f"the tensor {DOWN} of .* holds NaN or infinity"):
        load(quantised, backend)


def test_an_lm_head_that_is_quantised_alone_is_no_tied_one(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The embedding is plain, so both are kept."""
    source = tmp_path / "source"
    shutil.copytree(tiny("llama-mha-tied"), source)
    edit(source, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert load_decoder(source, ops=TorchOps()).spec.tie_word_embeddings
    quantised, plain = quantize(source, tmp_path, by_part({"lm_head": INT4}))
    assert not load_decoder(quantised, ops=TorchOps()).spec.tie_word_embeddings
    check_logits(logits(quantised, "cpu"), logits(plain, "cpu"), exact=False)
    assert torch.equal(logits(quantised, "torch"), logits(plain, "torch"))


@pytest.mark.parametrize("differ", [False, True])
def test_two_quantised_embeddings_are_tied_if_they_are_equal(tiny: Callable[[str], Path], tmp_path: Path, differ: bool) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("llama-mha-tied"), source)
    edit(source, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    quantised, plain = quantize(source, tmp_path, lambda _: INT4)
    if differ:
        edit(quantised, lambda tensors: tensors["lm_head.weight.offsets"][-1].zero_())
        edit(plain, lambda tensors: tensors.update({"lm_head.weight": decode_file(quantised, "lm_head.weight")}))
    model = load(quantised, "cpu")[1]
    assert model.spec.tie_word_embeddings is not differ
    assert (model.decoder.lm_head.format is model.decoder.embedding.format) is not differ
    check_logits(logits(quantised, "cpu"), logits(plain, "cpu"), exact=False)
    assert torch.equal(logits(quantised, "torch"), logits(plain, "torch"))


def test_a_tied_embedding_may_be_stored_as_the_lm_head(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny("llama-mha-tied"), source)
    edit(source, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    quantised, plain = quantize(source, tmp_path, lambda _: INT4)
    assert torch.equal(logits(quantised, "torch"), logits(plain, "torch"))


def test_a_bare_model_whose_tensors_are_all_quantised_has_its_prefix(quantised: Path) -> None:
    """The names of quantised matrices say whether a checkpoint leaves the prefix out."""

    def strip(tensors: dict[str, Tensor]) -> None:
        for name in [*tensors]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit(quantised, strip)
    set_settings(quantised, lambda matrices: [matrices.update({k.removeprefix("model."): matrices.pop(k)}) for k in [*matrices]])
    assert load_decoder(quantised, ops=TorchOps()).spec.num_layers == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_memory_is_that_of_the_loaded_formats(quantised: Path, backend: str, dtype: str) -> None:
    kernels = choose_backend(EngineOptions(backend=backend, threads=1), read_spec(Checkpoint.open(quantised)))
    plan = plan_decoder(Checkpoint.open(quantised), dtype=dtype, ops=kernels.ops, formats=kernels.formats)
    loaded = load_decoder(quantised, dtype=dtype, ops=kernels.ops, formats=kernels.formats)
    assert plan.weight_bytes == weight_bytes(loaded.decoder)


def test_native_memory_is_taken_once_and_by_loading(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Neither a plan nor a format that another one replaces takes any: four bits are less than 32."""
    quantised, plain = quantize(tiny("llama-gqa"), tmp_path, all_layers)
    taken = []
    for folder in (quantised, plain):
        kernels = choose_backend(EngineOptions(backend="cpu", threads=1), read_spec(Checkpoint.open(folder)))
        assert isinstance(kernels, NativeBackend)
        plan_decoder(Checkpoint.open(folder), ops=kernels.ops, formats=kernels.formats)
        assert kernels._weights.num_bytes == 0
        load_decoder(folder, ops=kernels.ops, formats=kernels.formats)
        taken.append(kernels._weights.num_bytes)
    assert 0 < taken[0] < taken[1]


def test_progress_counts_the_bytes_of_the_file(quantised: Path) -> None:
    told: list[tuple[int, int]] = []
    load_decoder(quantised, ops=TorchOps(), progress=lambda done, total: told.append((done, total)))
    stored = sum(tensor.nbytes for tensor in load_file(quantised / "model.safetensors").values())
    assert told[-1] == (stored, stored) and len(told) == len({done for done, _ in told})


@pytest.mark.parametrize(
    ("backend", "folders"),
    [("torch", "layers"), ("torch", "plain parts"), ("torch", "gpt2"), ("torch", "no native form"), ("cpu", "no native form")],
    indirect=["folders"],
)
def test_the_conversion_error_is_that_of_rounding_to_bfloat16(folders: tuple[str, tuple[Path, Path]], backend: str) -> None:
    _, (quantised, plain) = folders
    decoder = load(quantised, backend, dtype="bfloat16")[1].decoder
    layer = decoder.layers[2].mlp.down.format
    stored = next(tensor for name, tensor in load_file(plain / "model.safetensors").items() if "2.mlp." in name and is_down(name))
    expected = (stored.bfloat16().float() - stored).double().norm() / stored.double().norm()
    assert layer.conversion.relative_error == pytest.approx(float(expected), rel=1e-5)
    assert all(part.conversion is None for part in leaf_formats(load(quantised, backend)[1].decoder))  # float32 is exact


def test_native_forms_convert_nothing(quantised: Path) -> None:
    decoder = load(quantised, "cpu", dtype="bfloat16")[1].decoder
    assert all(part.conversion is None for part in leaf_formats(decoder))
    assert decoder.layers[2].mlp.down.format.form == "4-bit codes in groups of 16"


@pytest.mark.parametrize("int8_parts", [(True, True, True), (True, False, True), (False, True, False)])
def test_parts_take_int8_and_float_inputs(tiny: Callable[[str], Path], tmp_path: Path, int8_parts: tuple[bool, bool, bool]) -> None:
    """The native program of a decoder with fused matrices computes what its modules compute."""

    class MixedFactory(PackedFormatFactory):
        def stored(self, in_features: int, out_features: int, parts: Sequence[StoredPart]) -> WeightFormat:
            if len(parts) == 1:
                return self.projection(in_features, out_features)
            sizes = [part.stop - part.start for part in parts]
            return Fused(
                [
                    Packed(self.weights, size, in_features, Dtype.INT8, int8_activations=is_int8)
                    for size, is_int8 in zip(sizes, int8_parts, strict=False)
                ]
            )

    kernels, _ = load(tiny("llama-mqa-bias"), "cpu")
    assert isinstance(kernels, NativeBackend)
    quantised, _ = quantize(tiny("llama-mqa-bias"), tmp_path, lambda _: INT4)
    memory = Weights(kernels.cpu)
    model = load_decoder(quantised, ops=kernels.ops, formats=lambda dtype: MixedFactory(memory, dtype))
    assert sum(isinstance(part, Fused) for part in model.decoder.modules()) == 6
    found = torch.cat(PagedRunner(kernels, model, 16).prompt_logits(*PROMPTS))
    expected = dense_logits(model.decoder, PROMPTS)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_fused_matrix_looks_up_rows_of_its_parts() -> None:
    ops = TorchOps()
    parts = [Dense(8, size, ops, torch.float32) for size in (16, 32)]
    for part in parts:
        part.weight.normal_()
    rows = torch.cat([part.weight for part in parts])
    ids = torch.tensor([0, 47, 15, 16, 15])
    assert torch.equal(Fused(parts).lookup(ids), rows[ids])


def decode_file(folder: Path, name: str) -> Tensor:
    tensors = load_file(folder / "model.safetensors")
    return decode({part: tensors[f"{name}.{part}"] for part in ("codes", "scales", "offsets")}, INT4)


def is_down(name: str) -> bool:
    return name.endswith(("down_proj.weight", "mlp.c_proj.weight"))


def test_quantisation_is_no_remedy_for_weights_that_do_not_fit(quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "available_bytes", lambda: 1000)
    with pytest.raises(CapacityError, match=r"do not fit in memory: .*\. Free memory, or use a smaller model\.$"):
        load_decoder(quantised, ops=TorchOps())
