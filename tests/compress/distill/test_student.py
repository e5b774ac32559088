"""Every kind of student becomes a checkpoint that transformers and hasten load with equal logits."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.models.dense import dense_logits, differences
from tests.tiny_models import TINY
from transformers import AutoModelForCausalLM

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.distill.student import SmallerModel, StudentCheckpoint, StudentConfig, TeacherLayers, plan_student
from hasten.core.errors import CapacityError, CheckpointError, InvalidOption, ModelNotFound, UnsupportedModel
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.training.target_model import TargetModel, trainable_spec

IDS = torch.randint(3, 97, (1, 40), generator=torch.Generator().manual_seed(3))

MORE = [("llama-gqa", "every-2"), ("qwen3-mixed-window", "1"), ("qwen2-mixed-window", "uniform-2"), ("gpt2-untied-gelu", "1")]


def plan(source, teacher):
    return plan_student(source, teacher, trainable_spec(teacher))


def reference_logits(folder, kept=None):
    """Logits of transformers; ``kept``: only these layers, in the model itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if kept is not None:
        stack, name = (model.transformer, "h") if hasattr(model, "transformer") else (model.model, "layers")
        setattr(stack, name, torch.nn.ModuleList(getattr(stack, name)[index] for index in kept))
        layer_types = getattr(model.config, "layer_types", None)
        if layer_types is not None:
            model.config.layer_types = [layer_types[index] for index in kept]
        model.config.num_hidden_layers = len(kept)
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0]


@pytest.mark.parametrize(("name", "chosen"), [*((name, "0,2") for name in TINY), *MORE])
def test_layers_of_the_teacher_are_a_model_of_these_layers(tiny, name, chosen, tmp_path):
    folder = tiny(name)
    planned = plan(TeacherLayers(chosen), folder)
    last = Checkpoint.open(folder).config.get("num_hidden_layers", 3) - 1
    expected = {"0,2": (0, 2), "1": (1,), "every-2": (0, 2), "uniform-2": (0, last)}[chosen]
    assert planned.layers == expected
    student = planned.build(TargetModel.load(folder), 0)
    student.write(tmp_path / "student")
    logits = reference_logits(tmp_path / "student")
    assert differences(reference_logits(folder, expected), logits) == []
    loaded = load_decoder(tmp_path / "student", dtype="float32", ops=TorchOps())
    with torch.no_grad():
        assert differences(dense_logits(loaded.decoder, [IDS[0].tolist()]), logits) == []
    assert loaded.spec == planned.spec and all(parameter.requires_grad for parameter in student.decoder.parameters())


def test_layers_are_copies_and_all_layers_are_the_teacher(tiny, tmp_path):
    teacher = TargetModel.load(tiny("llama-gqa"))
    student = plan(TeacherLayers("every-1"), tiny("llama-gqa")).build(teacher, 0)
    names = dict(teacher.decoder.named_parameters())
    for name, parameter in student.decoder.named_parameters():
        assert torch.equal(parameter, names[name]) and parameter.data_ptr() != names[name].data_ptr()
    assert json.dumps(student.config) == json.dumps(teacher.config)


@pytest.mark.parametrize(
    ("chosen", "num_layers", "expected"),
    [
        ("0", 1, (0,)),
        ("uniform-1", 8, (0,)),
        ("uniform-4", 8, (0, 2, 5, 7)),
        ("uniform-8", 8, tuple(range(8))),
        ("every-3", 8, (0, 3, 6)),
        ("every-9", 8, (0,)),
        (" 1, 3 ,5", 8, (1, 3, 5)),
    ],
)
def test_layers_are_chosen_by_number_or_by_rule(chosen, num_layers, expected):
    assert TeacherLayers(chosen).indices(num_layers) == expected


def test_uniform_layers_are_different_for_all_sizes():
    for num_layers in range(1, 70):
        for count in range(1, num_layers + 1):
            chosen = TeacherLayers(f"uniform-{count}").indices(num_layers)
            assert len(set(chosen)) == count and chosen[0] == 0 and chosen[-1] in (0, num_layers - 1)


@pytest.mark.parametrize(
    "chosen",
    ["", ",", "0,0", "2,1", "3", "-1", "0,-1", "every", "every-0", "every--1", "uniform-0", "uniform-4", "uniform-1e9", "9" * 5000],
)
def test_other_layers_are_refused_in_one_sentence(chosen):
    with pytest.raises(InvalidOption, match=r"not layers of the teacher.*0 to 2 with commas, every-N, or uniform-N") as error:
        TeacherLayers(chosen).indices(3)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3-mixed-window", "gpt2"])
def test_a_smaller_model_has_the_teachers_vocabulary_and_random_weights(tiny, name, tmp_path):
    folder = tiny(name)
    planned = plan(SmallerModel(layers=2, hidden=32), folder)
    models = [planned.build(None, seed) for seed in (1, 1, 2)]
    first, again, other = ([parameter for _, parameter in sorted(model.decoder.named_parameters())] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert (planned.spec.num_layers, planned.spec.hidden_size) == (2, 32)
    assert planned.spec.vocab_size == trainable_spec(folder).vocab_size
    models[0].write(tmp_path / "student")
    with torch.no_grad():
        expected = dense_logits(models[0].decoder, [IDS[0].tolist()])
    assert differences(reference_logits(tmp_path / "student"), expected) == []


def test_a_configuration_takes_the_teachers_tokens(tiny, tmp_path):
    config = {**Checkpoint.open(tiny("gpt2")).config, "vocab_size": 7, "eos_token_id": 5}
    file = tmp_path / "other.json"
    file.write_text(json.dumps(config))
    planned = plan(StudentConfig(file), tiny("llama-gqa"))
    teacher = Checkpoint.open(tiny("llama-gqa")).config
    assert planned.spec.model_type == "gpt2" and planned.spec.vocab_size == 101
    assert {name: planned.config[name] for name in ("eos_token_id", "bos_token_id", "pad_token_id")} == {
        name: teacher[name] for name in ("eos_token_id", "bos_token_id", "pad_token_id")
    }
    planned.build(None, 0).write(tmp_path / "student")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.vocab_size == 101


def test_a_checkpoint_is_loaded_as_it_is(tiny):
    planned = plan(StudentCheckpoint(str(tiny("qwen3-gqa"))), tiny("llama-gqa"))
    assert planned.is_trained and planned.folder == tiny("qwen3-gqa")
    student = planned.build(None, 0)
    with torch.no_grad():
        logits = dense_logits(student.decoder, [IDS[0].tolist()])
    assert differences(logits, reference_logits(tiny("qwen3-gqa"))) == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", CheckpointError, "cannot be read as JSON"),
        ("[1]", CheckpointError, "not a JSON object"),
        ("{}", UnsupportedModel, "model type"),
        ('{"model_type": "mamba"}', UnsupportedModel, "mamba"),
        ('{"model_type": ["llama"]}', UnsupportedModel, "model type"),
        ('{"model_type": "llama", "hidden_size": "big"}', UnsupportedModel, "hidden_size"),
        ('{"model_type": "llama", "quantization_config": {"a": 1}}', UnsupportedModel, "describes quantised weights"),
    ],
)
def test_a_broken_configuration_is_refused_before_memory_is_taken(tiny, tmp_path, text, error, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(error, match=message):
        plan(StudentConfig(file), tiny("llama-gqa")).build(None, 0)


def test_a_student_that_memory_does_not_hold_is_refused(tiny, tmp_path):
    config = {
        **Checkpoint.open(tiny("llama-gqa")).config,
        "hidden_size": 2**16,
        "intermediate_size": 2**18,
        "num_hidden_layers": 99,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(CapacityError, match=r"the student \(random weights of config.json\) and its optimizer do not fit"):
        plan(StudentConfig(file), tiny("llama-gqa")).build(None, 0)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (StudentCheckpoint("no/such/model"), ModelNotFound, "no such model folder"),
        (StudentConfig("missing.json"), CheckpointError, "cannot be read"),
        (SmallerModel(layers=9), InvalidOption, r"layers=9.*up to 3 layers.*--student-size"),
        (SmallerModel(layers=1, hidden=24), InvalidOption, "multiples of 16"),
        (SmallerModel(layers=0, hidden=32), InvalidOption, "layers=0"),
    ],
)
def test_students_that_cannot_be_made_are_refused(tiny, source, error, message):
    with pytest.raises(error, match=message):
        plan(source, tiny("llama-gqa"))


def test_a_quantised_checkpoint_is_no_student(tiny, tmp_path):
    folder = tmp_path / "quantised"
    shutil.copytree(tiny("llama-gqa"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModel, match=r"quantised.*gptq"):
        plan(StudentCheckpoint(str(folder)), tiny("llama-gqa"))
