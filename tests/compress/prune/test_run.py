"""Structured pruning from a checkpoint to a checkpoint: rounds, recovery, and runs that are stopped or killed."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.compress.files import file_bytes, hasten_logits
from tests.compress.prune.killed_runs import OPTIONS
from tests.exhaustive import repeats
from tests.training.conftest import stop_after
from transformers import AutoModelForCausalLM

from hasten.compress.cast import cast_checkpoint
from hasten.compress.new_folder import partial_folder
from hasten.compress.prune import structured_run
from hasten.compress.prune.gradual import PRUNING_STEPS
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.run import run_pruning
from hasten.compress.prune.shape import Shape, num_parameters
from hasten.compress.prune.structured import prune_model
from hasten.compress.quantize.calibration import calibration_ids
from hasten.core.errors import CheckpointError, HastenError, InvalidOption, UnsupportedModel
from hasten.text.tokenizer import TextTokenizer
from hasten.training.trainable_model import TrainableModel

SMALL: dict[str, Any] = {"samples": 4, "seq_len": 32}


def test_a_pruned_model_is_that_of_prune_model_and_loads_in_transformers(model, calibration, tmp_path):
    options = PruneOptions(ratio=0.5, parts=("heads", "neurons", "width", "layers"), **SMALL)
    lines: list[str] = []
    result = run_pruning(str(model), tmp_path / "out", options, calibration=calibration, report=lines.append)
    assert result is not None
    original = TrainableModel.load(model)
    tokenizer = TextTokenizer.load(model, 101)
    ids = calibration_ids(calibration, tokenizer, samples=4, seq_len=32, seed=0, max_positions=256)
    written = TrainableModel.load(tmp_path / "out")
    shape = Shape.of(written.spec)
    assert shape == Shape(num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, intermediate_size=48)
    expected = prune_model(original, shape, ids, options)
    for name, weight in written.decoder.named_parameters():
        assert weight.equal(expected.decoder.get_parameter(name)), name
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = reference(ids).logits
    assert (hasten_logits(tmp_path / "out", ids) - logits).abs().max() < 1e-4
    assert result.num_parameters == num_parameters(written.spec) < result.original_num_parameters
    assert any("neurons" in line and "48 of 96" in line for line in lines)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| hidden size | 64 before, 32 now |" in card and "| heads | 4 before, 2 now |" in card
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_ratio_is_the_identity_bit_for_bit(model, calibration, tmp_path, dtype):
    cast_checkpoint(model, tmp_path / "cast", dtype)
    run_pruning(str(tmp_path / "cast"), tmp_path / "out", PruneOptions(ratio=0, **SMALL), calibration=calibration)
    source, written = (load_file(tmp_path / name / "model.safetensors") for name in ("cast", "out"))
    assert source.keys() == written.keys()
    assert all(tensor.dtype == written[name].dtype and tensor.equal(written[name]) for name, tensor in source.items())


def test_a_configuration_without_a_dtype_keeps_that_of_the_weights(model, calibration, tmp_path):
    cast_checkpoint(model, tmp_path / "cast", "bfloat16")
    file = tmp_path / "cast" / "config.json"
    config = {name: value for name, value in json.loads(file.read_text()).items() if name not in ("dtype", "torch_dtype")}
    file.write_text(json.dumps(config))
    run_pruning(str(tmp_path / "cast"), tmp_path / "out", PruneOptions(ratio=0.5, **SMALL), calibration=calibration)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"method": "weight"}, False),
        ({"method": "random", "parts": ("layers", "heads")}, False),
        ({"method": "weight", "parts": ("layers",)}, True),
        ({"method": "taylor"}, True),
    ],
)
def test_a_text_is_read_only_where_importance_is_measured_on_it(model, tmp_path, options, reads):
    shutil.copytree(model, tmp_path / "model")
    for file in (tmp_path / "model").glob("token*"):
        file.unlink()
    if reads:
        with pytest.raises(InvalidOption, match="no tokenizer"):
            run_pruning(str(tmp_path / "model"), tmp_path / "out", PruneOptions(ratio=0.5, **options, **SMALL))
        return
    result = run_pruning(str(tmp_path / "model"), tmp_path / "out", PruneOptions(ratio=0.5, **options, **SMALL))
    assert result is not None and result.card.calibration is None and result.num_parameters < result.original_num_parameters
    assert "calibration" not in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_vllm_needs(tiny, tmp_path):
    for part, needs in (("heads", True), ("neurons", False)):
        lines: list[str] = []
        options = PruneOptions(ratio=0.5, method="weight", parts=(part,))
        run_pruning(str(tiny("qwen2-tied")), tmp_path / part, options, report=lines.append)
        assert any("--model-impl transformers" in line for line in lines) == needs
        assert ("--model-impl transformers" in (tmp_path / part / "README.md").read_text()) == needs


@pytest.mark.parametrize(
    ("ratio", "parts", "message"),
    [
        (0.01, ("heads", "neurons"), "a ratio of 0.01 is too small to change the heads and the neurons"),
        (0.2, ("heads", "neurons"), "a ratio of 0.2 is too small to change the heads"),
        (0.0, ("heads", "neurons"), None),
        (0.5, ("heads", "layers"), None),
    ],
)
def test_a_ratio_that_rounds_to_nothing_is_said(model, calibration, tmp_path, ratio, parts, message):
    lines: list[str] = []
    options = PruneOptions(ratio=ratio, parts=parts, **SMALL)
    run_pruning(str(model), tmp_path / "out", options, calibration=calibration, report=lines.append)
    assert [line for line in lines if line.startswith("warning")] == ([] if message is None else [f"warning: {message}"])


def test_weights_that_overflow_in_the_dtype_are_refused(tiny, tmp_path):
    """Norms grow when channels leave."""
    cast_checkpoint(tiny("llama-gqa"), tmp_path / "half", "float16")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    weights["model.norm.weight"].fill_(60_000.0)
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    options = PruneOptions(ratio=0.25, method="weight", parts=("width",))
    with pytest.raises(CheckpointError, match=r"the weights norm\.weight are too large for float16"):
        run_pruning(str(tmp_path / "half"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_recovery_brings_the_model_nearer_to_the_unpruned_one(model, calibration, tmp_path):
    ids = torch.randint(10, 90, (8, 32), generator=torch.Generator().manual_seed(3))
    expected = hasten_logits(model, ids).log_softmax(-1)

    def divergence(folder: Path) -> float:
        found = hasten_logits(folder, ids).log_softmax(-1)
        return float((expected.exp() * (expected - found)).sum())

    options = PruneOptions(ratio=0.5, **SMALL)
    run_pruning(str(model), tmp_path / "pruned", options, calibration=calibration)
    trained = dataclasses.replace(options, steps=2, recover_steps=40, recover_lr=3e-3)
    lines: list[str] = []
    result = run_pruning(str(model), tmp_path / "out", trained, data=calibration, calibration=calibration, report=lines.append)
    assert result is not None
    assert divergence(tmp_path / "out") < 0.8 * divergence(tmp_path / "pruned")
    rounds = [line for line in lines if "nats from the unpruned model" in line]
    assert len(rounds) == 2 and all("20 steps" in line and "tokens with validation" in line for line in rounds)
    assert result.card.options["recovery text"] == "calibration.txt" and "round 2" in result.card.options
    sizes = [int(re.findall(r"([\d,]+) parameters", line)[0].replace(",", "")) for line in rounds]
    assert result.original_num_parameters > sizes[0] > sizes[1] == result.num_parameters
    assert any(line.startswith("warning: a round removes") and "--steps" in line for line in lines)


def test_minutes_are_shared_by_the_rounds():
    from hasten.compress.prune.gradual import train_options

    options = PruneOptions(ratio=0.5, steps=4, recover_minutes=10)
    assert [train_options(options, number).minutes for number in (1, 2, 3, 4)] == [2.5] * 4
    options = PruneOptions(ratio=0.5, steps=4, recover_steps=10)
    assert [train_options(options, number).steps for number in (1, 2, 3, 4)] == [2, 3, 2, 3]
    assert len({train_options(options, number).seed for number in (1, 2, 3, 4)}) == 4


@pytest.fixture(scope="module")
def uninterrupted(model, calibration, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run with ``OPTIONS``."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run_pruning(str(model), out, OPTIONS, data=calibration, calibration=calibration)
    return file_bytes(out)


def test_a_run_that_was_stopped_anywhere_resumes_to_the_same_bytes(model, calibration, tmp_path, uninterrupted):
    seen: list[tuple[int, int]] = []
    calls = 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        return False

    texts = {"data": calibration, "calibration": calibration}
    whole = run_pruning(
        str(model), tmp_path / "whole", OPTIONS, **texts, progress=lambda *steps: seen.append(steps), should_stop=count
    )
    assert whole is not None and seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    for stop in random.Random(1).sample(range(calls), 3):
        out = tmp_path / f"stopped-{stop}"
        assert run_pruning(str(model), out, OPTIONS, **texts, should_stop=stop_after(stop)) is None
        assert not out.exists()
        resumed = run_pruning(str(model), out, OPTIONS, **texts, resume=True)
        assert resumed is not None and file_bytes(out) == uninterrupted == file_bytes(tmp_path / "whole")
        assert resumed.card.options == whole.card.options
        assert not partial_folder(out).exists()


def test_a_run_resumes_with_another_number_of_threads(model, calibration, tmp_path):
    done: list[int] = []
    texts: dict[str, Any] = {"data": calibration, "calibration": calibration}
    stopped = run_pruning(
        str(model),
        tmp_path / "out",
        OPTIONS,
        **texts,
        progress=lambda step, total: done.append(step),
        should_stop=lambda: done[-1] > PRUNING_STEPS,  # after a step of the first training
    )
    assert stopped is None
    assert run_pruning(str(model), tmp_path / "out", dataclasses.replace(OPTIONS, threads=2), **texts, resume=True) is not None


CRASHES = {  # what raises, at which call, with which folder, and how many rounds prune when the run is resumed
    "before the first step of the second round": ("TrainingLoop.run", 2, None, 1),
    "before the folder of the first round has its name": ("new_folder", 2, None, 2),
    "while the state of the second training is removed": ("shutil.rmtree", 1, "training-002", 1),
    "while the folder of the first round is removed": ("shutil.rmtree", 1, "round-001", 1),
}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_between_two_folders_resumes_to_the_same_bytes(model, calibration, tmp_path, monkeypatch, uninterrupted, crash):
    texts = {"data": calibration, "calibration": calibration}
    name, call, folder, num_rounds = CRASHES[crash]
    target = f"hasten.compress.prune.gradual.{name}"
    original, calls = pkgutil.resolve_name(target), 0

    def crashing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += folder is None or arguments[0].name == folder
        if calls == call:
            raise RuntimeError("crash")
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, crashing)
        with pytest.raises(RuntimeError, match="crash"):
            run_pruning(str(model), tmp_path / "out", OPTIONS, **texts)
    pruned: list[Shape] = []

    def counted(model: TrainableModel, shape: Shape, *arguments: Any) -> TrainableModel:
        pruned.append(shape)
        return prune_model(model, shape, *arguments)

    monkeypatch.setattr("hasten.compress.prune.gradual.prune_model", counted)
    run_pruning(str(model), tmp_path / "out", OPTIONS, **texts, resume=True)
    assert file_bytes(tmp_path / "out") == uninterrupted and len(pruned) == num_rounds


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(model, calibration, tmp_path):
    kills = repeats("pruning kills")
    command = [sys.executable, "-m", "tests.compress.prune.killed_runs", str(model), str(calibration), str(tmp_path / "out")]
    ran = subprocess.run([*command, str(kills), "0"], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["killed"] == kills
    assert file_bytes(tmp_path / "out") == file_bytes(tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "whole"]


def test_a_measured_latency_chooses_the_sizes_once(model, calibration, tmp_path, monkeypatch):
    measured: list[Shape] = []

    def latency(config: Any, spec: Any, shape: Shape, dtype: torch.dtype, folder: Path, threads: int | None) -> float:
        assert dtype == torch.float32 and folder.parent.is_dir()
        measured.append(shape)
        return 1e-4 * num_parameters(shape.apply(spec))

    monkeypatch.setattr(structured_run, "measure_latency", latency)
    whole = 1e-4 * num_parameters(TrainableModel.load(model).spec)
    options = PruneOptions(target_latency=0.7 * whole, parts=("neurons", "heads"), **SMALL)
    found = partial_folder(tmp_path / "out") / ".resume" / "target.safetensors"
    assert run_pruning(str(model), tmp_path / "out", options, calibration=calibration, should_stop=found.is_file) is None
    count = len(measured)
    assert 3 <= count == len(set(measured)) <= 8
    result = run_pruning(str(model), tmp_path / "out", options, calibration=calibration, resume=True)
    assert result is not None and len(measured) == count
    assert 1e-4 * result.num_parameters <= 0.7 * whole
    impossible = dataclasses.replace(options, target_latency=1e-3)
    with pytest.raises(InvalidOption, match="target_latency"):
        run_pruning(str(model), tmp_path / "none", impossible, calibration=calibration)
    assert not partial_folder(tmp_path / "none").exists()


def test_the_latency_of_a_real_model_is_measured(model, tmp_path):
    from hasten.compress.prune.latency import measure_latency

    loaded = TrainableModel.load(model)
    for shape in (Shape.of(loaded.spec), dataclasses.replace(Shape.of(loaded.spec), num_layers=1, intermediate_size=16)):
        assert 0 < measure_latency(loaded.config, loaded.spec, shape, torch.bfloat16, tmp_path / "latency", 1) < 1000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rounds": 3}', '{"rounds": [{}]}', '{"rounds": [{"num_parameters": "x"}]}'])
def test_a_damaged_round_is_one_error(model, calibration, tmp_path, content):
    texts = {"data": calibration, "calibration": calibration}
    out = tmp_path / "out"
    resume = partial_folder(out) / ".resume"
    run_pruning(str(model), out, OPTIONS, **texts, should_stop=lambda: (resume / "round-001").is_dir())
    (resume / "round-001" / "round.json").write_text(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        run_pruning(str(model), out, OPTIONS, **texts, resume=True)
    assert not out.exists()


@pytest.mark.parametrize("part", ["target", "corpus"])
def test_damaged_parts_are_one_error(model, calibration, tmp_path, part):
    texts = {"data": calibration, "calibration": calibration}
    out = tmp_path / "out"
    file = partial_folder(out) / ".resume" / f"{part}.safetensors"
    run_pruning(str(model), out, OPTIONS, **texts, should_stop=file.is_file)
    from safetensors.torch import save_file

    for damage in (lambda: file.write_bytes(b"x"), lambda: save_file({"odd": torch.zeros(3)}, file)):
        damage()
        with pytest.raises(HastenError, match="is damaged"):
            run_pruning(str(model), out, OPTIONS, **texts, resume=True)


@pytest.mark.parametrize(
    ("options", "texts", "message"),
    [
        ({"ratio": 0.5, "seq_len": 300}, {}, "up to 256"),
        ({"ratio": 0.5}, {"data": True}, "data has no effect without recovery"),
        ({"ratio": 0.5, "recover_steps": 4, "seq_len": 16}, {}, "seq_len=16"),
        ({"ratio": 0.5, "recover_steps": 2, "steps": 3}, {}, "steps"),
        ({"target_params": 10}, {}, "target_params"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_nothing(model, calibration, tmp_path, options, texts, message):
    with pytest.raises(InvalidOption, match=message):
        run_pruning(
            str(model),
            tmp_path / "out",
            PruneOptions(**{"samples": 4, "seq_len": 32, **options}),
            calibration=calibration,
            data=calibration if texts else None,
        )
    assert list(tmp_path.iterdir()) == []


def test_quantised_weights_are_refused(calibration, tmp_path):
    from hasten.compress.quantize.options import QuantizeOptions
    from hasten.compress.quantize.quantize import quantize

    quantize("demo", tmp_path / "small", QuantizeOptions(method="rtn"))
    for options in (PruneOptions(ratio=0.5), PruneOptions(ratio=0.5, method="magnitude")):
        with pytest.raises(UnsupportedModel, match="pruning needs them in floating point"):
            run_pruning(str(tmp_path / "small"), tmp_path / "out", options)
