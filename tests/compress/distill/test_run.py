"""A distillation ends in a checkpoint, a report and curves; it can be stopped anywhere and shows what is forgotten."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.compress.distill.conftest import A, periodic_ids, write_jsonl
from tests.models.dense import dense_logits, differences
from tests.training.conftest import stop_after
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hasten.compress.distill import run as run_module
from hasten.compress.distill.forgetting import outside_sequences
from hasten.compress.distill.run import distill
from hasten.compress.distill.student import SmallerModel, StudentCheckpoint, StudentConfig, TeacherLayers
from hasten.core.errors import CapacityError, CheckpointError, HastenError, InvalidOption
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.text.tokenizer import TextTokenizer
from hasten.training.callback import TrainingCallback
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.options import TrainOptions

OPTIONS = TrainOptions(steps=30, batch=2, seq_len=32, lr=3e-3, save_every=0, seed=4, patience=99)
SFT = DistillRecipe(loss="sft")


class Log(TrainingCallback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_log(self, message: str) -> None:
        self.lines.append(message)


def report(out: Path) -> dict:
    return json.loads((out / "training.json").read_text())


def with_options(**changes) -> TrainOptions:
    import dataclasses

    return dataclasses.replace(OPTIONS, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def equal_weights(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def sources(teacher: Path, config: Path) -> dict[str, object]:
    return {
        "checkpoint": StudentCheckpoint(str(teacher)),
        "config": StudentConfig(config),
        "layers": TeacherLayers("0,2"),
        "smaller": SmallerModel(layers=1, hidden=32),
    }


@pytest.mark.parametrize("kind", ["checkpoint", "config", "layers", "smaller"])
def test_every_student_becomes_a_checkpoint_with_tokenizer_card_report_and_curves(
    teacher, plain_model, text_a, text_b, tmp_path, kind
):
    config = json.loads((plain_model / "config.json").read_text()) | {"num_hidden_layers": 1, "hidden_size": 32, "vocab_size": 9}
    (tmp_path / "small.json").write_text(json.dumps(config))
    source = sources(plain_model, tmp_path / "small.json")[kind]
    out = tmp_path / "out"
    result = distill(str(teacher), source, text_a, out, options=with_options(steps=15), outside=text_b)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "small.json"]
    ids = periodic_ids(A, 40)
    loaded = load_decoder(out, dtype="float32", ops=TorchOps())
    with torch.no_grad():
        assert differences(dense_logits(loaded.decoder, [ids]), logits(out, ids)) == []
    assert AutoTokenizer.from_pretrained(out)("w10 w11").input_ids == [10, 11]
    values = report(out)
    assert json.loads((out / "curves.json").read_text())["evaluations"] == values["evaluations"]
    assert [entry["step"] for entry in values["evaluations"]] == list(range(1, 16))
    assert values["evaluations"][-1]["kl"] < 0.9 * values["evaluations"][0]["kl"]
    assert {"loss", "perplexity", "kl", "top1_agreement"} <= values["held_out_score"].keys() & values["held_out_score"][
        "outside"
    ].keys()
    assert (values["before_training"] is None) == (kind != "checkpoint") == (result.before is None)
    card = (out / "README.md").read_text()
    for line in ("| method | distillation |", "| loss | forward-kl |", "| data | a.txt: ", "| teacher | model |"):
        assert line in card
    assert values["data_sha256"] in card and str(tmp_path) not in card
    assert [row[0] for row in result.rows()] == [
        f"{where} the set: {what}" for where in ("inside", "outside") for what in ("mean KL, nats", "top-1 agreement", "perplexity")
    ]


def test_the_figures_outside_the_set_are_those_of_transformers(teacher, plain_model, text_a, text_b, tmp_path):
    """Perplexity and KL of the student before training, and of the teacher, on the sequences of the final evaluation."""
    options = with_options(steps=10, batch=2)
    result = distill(str(teacher), StudentCheckpoint(str(plain_model)), text_a, tmp_path / "out", SFT, options, outside=text_b)
    tokenizer = TextTokenizer.load(teacher, 101)
    sequences = outside_sequences(text_b, tokenizer, 32)[:8].long()  # four times the two of an evaluation
    students, teachers = (
        torch.stack([logits(folder, row.tolist())[:-1] for row in sequences]) for folder in (plain_model, teacher)
    )
    nll = torch.nn.functional.cross_entropy(students.flatten(0, 1), sequences[:, 1:].flatten())
    kl = torch.nn.functional.kl_div(students.log_softmax(-1), teachers.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    before = report(tmp_path / "out")["before_training"]["outside"]
    assert before["positions"] == 8 * 31
    assert before["perplexity"] == pytest.approx(float(nll.exp()), rel=1e-4)
    assert before["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    teacher_nll = torch.nn.functional.cross_entropy(teachers.flatten(0, 1), sequences[:, 1:].flatten())
    assert result.teacher_score.outside.perplexity == pytest.approx(float(teacher_nll.exp()), rel=1e-4)
    final = torch.stack([logits(tmp_path / "out", row.tolist())[:-1] for row in sequences])
    final_nll = torch.nn.functional.cross_entropy(final.flatten(0, 1), sequences[:, 1:].flatten())
    assert result.score.outside.perplexity == pytest.approx(float(final_nll.exp()), rel=1e-4)
    assert result.rows()[-1] == (
        "outside the set: perplexity",
        f"{result.teacher_score.outside.perplexity:.4f}",
        f"{result.score.outside.perplexity:.4f} ({before['perplexity']:.4f} before)",
    )


def test_replay_lowers_forgetting(teacher, text_a, tmp_path):
    """A model that is fluent in a text learns its words backwards. With replay it keeps the text, and learns all the same."""
    backwards = tmp_path / "backwards.txt"
    backwards.write_text("\n".join([" ".join(f"w{token}" for token in reversed(periodic_ids(A, 7)))] * 400))
    inside, outside = {}, {}
    for share in (None, 0.25):
        out = tmp_path / str(share)
        replayed = {} if share is None else {"replay": text_a, "replay_share": share}
        source = StudentCheckpoint(str(teacher))
        result = distill(str(teacher), source, backwards, out, SFT, with_options(steps=40), outside=text_a, **replayed)
        assert result.before.outside.perplexity < 1.5 and result.before.inside.perplexity > 1000
        inside[share], outside[share] = result.score.inside.perplexity, result.score.outside.perplexity
        assert ("| replay | a.txt, 25% of batches |" in (out / "README.md").read_text()) == (share is not None)
    assert max(inside.values()) < 1.1 and outside[None] > 1000 and outside[0.25] < 3, (inside, outside)


RECIPES = {
    "forward KL": (DistillRecipe(), {}),
    "replay and hidden states": (DistillRecipe(loss="js", hidden_weight=0.5, hard_label_weight=0.2), {"replay_share": 0.3}),
    "on policy": (DistillRecipe(loss="reverse-kl", on_policy=0.5), {}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_is_stopped_anywhere_gives_the_same_bits(teacher, plain_model, text_a, text_b, tmp_path, name):
    recipe, replayed = RECIPES[name]
    given = {"outside": text_a, "device": "cpu", **({"replay": text_a, **replayed} if replayed else {})}
    options = with_options(steps=6, threads=1)
    student = StudentCheckpoint(str(plain_model)) if replayed else TeacherLayers("0,2")
    arguments = (str(teacher), student, text_b)
    assert distill(*arguments, tmp_path / "whole", recipe, options, **given) is not None
    for calls in (0, 3, 1):
        assert distill(*arguments, tmp_path / "broken", recipe, options, should_stop=stop_after(calls), **given) is None
        assert not (tmp_path / "broken").exists()
    log = Log()
    assert distill(*arguments, tmp_path / "broken", recipe, options, callback=log, **given) is not None
    assert "resuming after step 4 of 6" in log.lines
    assert report(tmp_path / "broken") == report(tmp_path / "whole")
    assert equal_weights(tmp_path / "broken", tmp_path / "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {"whole", "broken"}


def test_other_settings_are_refused_and_the_finished_run_is_kept(teacher, text_a, text_b, tmp_path):
    out, source = tmp_path / "out", TeacherLayers("0")
    assert distill(str(teacher), source, text_a, out, options=OPTIONS, should_stop=stop_after(1)) is None
    for changed in (
        {"recipe": DistillRecipe(loss="js")},
        {"data": text_b},
        {"student": TeacherLayers("1")},
        {"replay": text_b},
        {"outside": text_b},
        {"options": with_options(seed=9)},
    ):
        given = {"student": source, "data": text_a, "options": OPTIONS, "recipe": DistillRecipe(), **changed}
        data, recipe, options = (given.pop(name) for name in ("data", "recipe", "options"))
        with pytest.raises(InvalidOption, match="unfinished run with other settings"):
            distill(str(teacher), given.pop("student"), data, out, recipe, options, **given)
    assert distill(str(teacher), source, text_a, out, options=OPTIONS) is not None
    with pytest.raises(InvalidOption, match="not an empty folder"):
        distill(str(teacher), source, text_a, out, options=OPTIONS)


def test_examples_teach_their_outputs_only(plain_model, tmp_path):
    """The inputs are random words, and every output repeats one word: a student can learn the outputs alone."""
    generator = torch.Generator().manual_seed(1)
    records = [
        {"input": " ".join(f"w{int(token)}" for token in torch.randint(50, 90, (6,), generator=generator)), "output": "w7 w8 w7 w8"}
        for _ in range(60)
    ]
    data = write_jsonl(tmp_path / "examples.jsonl", records)
    log = Log()
    result = distill(
        str(plain_model),
        SmallerModel(layers=1, hidden=32),
        data,
        tmp_path / "out",
        SFT,
        with_options(steps=80, lr=0.02),
        callback=log,
    )
    assert any("examples for training" in line for line in log.lines)
    assert result.score.inside.num_positions % 5 == 0, "four words and the end token of each output"
    assert result.score.inside.perplexity < 1.3


def test_a_teacher_writes_the_text_itself(teacher, text_a, tmp_path):
    log = Log()
    options = with_options(steps=4, self_distill=20)
    assert distill(str(teacher), TeacherLayers("0"), text_a, tmp_path / "out", options=options, callback=log) is not None
    assert "generating 20 documents of 32 tokens to train on" in log.lines
    assert report(tmp_path / "out")["self_distill"] == 20


def other_vocabulary(plain_model: Path, folder: Path, tmp_path: Path) -> Path:
    """The same words with other ids: w10 is token 11."""
    shutil.copytree(plain_model, folder)
    words = Tokenizer(models.WordLevel({f"w{i}": (i + 1) % 101 for i in range(101)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w2").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("self_distill", [None, 30])
def test_a_student_of_another_vocabulary_learns_from_text(teacher, plain_model, text_a, tmp_path, self_distill):
    student = other_vocabulary(plain_model, tmp_path / "student", tmp_path)
    options = with_options(steps=40, self_distill=self_distill)
    result = distill(str(teacher), StudentCheckpoint(str(student)), text_a, tmp_path / "out", SFT, options, outside=text_a)
    assert result.teacher_score is None and result.score.inside.kl is None
    assert result.score.outside.perplexity < 1.5 < result.before.outside.perplexity
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w10 w11").input_ids == [11, 12]
    following = logits(tmp_path / "out", [token + 1 for token in periodic_ids(A, 20)])[-1].argmax()
    assert int(following) == periodic_ids(A, 21)[-1] + 1
    assert [row[0] for row in result.rows()] == ["inside the set: perplexity", "outside the set: perplexity"]


@pytest.mark.parametrize("recipe", [DistillRecipe(), DistillRecipe(loss="js"), DistillRecipe(loss="sft", hidden_weight=1.0)])
def test_losses_on_tokens_need_one_vocabulary(teacher, plain_model, text_a, tmp_path, recipe):
    student = other_vocabulary(plain_model, tmp_path / "student", tmp_path)
    with pytest.raises(InvalidOption, match=rf"different vocabularies.*loss={recipe.loss}.*--loss sft.*hasten data generate"):
        distill(str(teacher), StudentCheckpoint(str(student)), text_a, tmp_path / "out", recipe, OPTIONS)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_student_without_a_tokenizer_takes_the_teachers(teacher, tiny, text_a, tmp_path):
    assert distill(str(teacher), StudentCheckpoint(str(tiny("qwen3-gqa"))), text_a, tmp_path / "out", options=with_options(steps=2))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w10").input_ids == [10]
    with pytest.raises(InvalidOption, match="no tokenizer encodes text for the student"):
        distill(str(teacher), StudentCheckpoint(str(tiny("mistral-full"))), text_a, tmp_path / "other", options=OPTIONS)


def test_the_shipped_text_is_left_out_where_the_vocabulary_lacks_its_words(teacher, text_a, tmp_path):
    log = Log()
    result = distill(str(teacher), TeacherLayers("0"), text_a, tmp_path / "out", options=with_options(steps=2), callback=log)
    assert result.score.outside is None and "outside" not in report(tmp_path / "out")["evaluations"][0]
    (line,) = (line for line in log.lines if "forgetting is not measured" in line)
    assert "lacks its words" in line


def test_a_student_larger_than_its_teacher_is_noted(plain_model, tiny, text_a, tmp_path):
    small = tmp_path / "small"
    assert distill(str(plain_model), SmallerModel(layers=1, hidden=32), text_a, small, options=with_options(steps=1)) is not None
    log = Log()
    student = StudentCheckpoint(str(plain_model))
    assert distill(str(small), student, text_a, tmp_path / "out", options=with_options(steps=1), callback=log) is not None
    (line,) = (line for line in log.lines if line.startswith("student: "))
    assert line.endswith("on cpu; the student is larger than its teacher")


def test_a_full_disk_leaves_no_result_and_the_run_goes_on(teacher, text_a, tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    arguments = (str(teacher), TeacherLayers("0"), text_a, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_curves", disk_full)
        with pytest.raises(CapacityError, match="No space left"):
            distill(*arguments, options=with_options(steps=3))
    assert not (tmp_path / "out").exists()
    assert distill(*arguments, options=with_options(steps=3)) is not None


def test_a_damaged_state_is_reported(teacher, text_a, tmp_path):
    arguments = (str(teacher), TeacherLayers("0"), text_a, tmp_path / "out")
    assert distill(*arguments, options=OPTIONS, should_stop=stop_after(2)) is None
    file = tmp_path / "out.partial" / ".resume" / "corpus.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-9], content.replace(b"train_N", b"trail_N")):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"saved state in .* is damaged"):
            distill(*arguments, options=OPTIONS)


BAD = {
    "missing data": ({"data": "missing.txt"}, "missing.txt cannot be read"),
    "empty data": ({"data": ""}, "is empty"),
    "data that is no text": ({"data": b"\xff\xfe"}, "is not text"),
    "short data": ({"data": "w10 w11"}, "too short for one training sequence"),
    "no text in a line": ({"data": '{"no": 1}', "suffix": ".jsonl"}, "line 1 of .* holds no text"),
    "half an example": ({"data": '{"input": "w10"}\n', "suffix": ".jsonl"}, "line 1 of .* is no example"),
    "few examples": ({"data": '{"input": "w10", "output": "w11"}\n', "suffix": ".jsonl"}, "too few examples"),
    "examples and self_distill": (
        {"data": '{"input": "w10", "output": "w11"}\n', "suffix": ".jsonl", "options": {"self_distill": 3}},
        "the teacher continues texts",
    ),
    "missing replay": ({"replay": "missing"}, "missing cannot be read"),
    "short replay": ({"replay": "w10"}, "replay text .* is too short"),
    "no share": ({"replay": "w10", "replay_share": 0.0}, "share of replayed batches"),
    "whole share": ({"replay": "w10", "replay_share": 1.0}, "share of replayed batches"),
    "odd share": ({"replay": "w10", "replay_share": math.nan}, "share of replayed batches"),
    "missing outside": ({"outside": "missing"}, "missing cannot be read"),
    "short outside": ({"outside": "w10 w11"}, r"outside the set is too short.*--outside"),
    "long sequences": ({"options": {"seq_len": 512}}, "exceeds the models' context: got 512 tokens; allowed: up to 256"),
    "unknown device": ({"device": "tpu"}, "unknown device: got 'tpu'; allowed: auto, cpu, cuda"),
    "unknown teacher": ({"teacher": "./nowhere"}, "no such model folder"),
    "output in use": ({"out": ".", "replay": "w10"}, "not an empty folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs_are_one_sentence_and_leave_nothing(teacher, text_a, tmp_path, name):
    given, message = BAD[name]
    given = dict(given)
    files = {}
    for key in ("data", "replay", "outside"):
        content = given.pop(key, None)
        if content is not None:
            files[key] = tmp_path / f"{key}{given.get('suffix', '.txt')}"
            if not str(content).startswith("missing"):
                files[key].write_bytes(content if isinstance(content, bytes) else content.encode())
            else:
                files[key] = tmp_path / content
    options = with_options(**given.pop("options", {}))
    given.pop("suffix", None)
    out = tmp_path / given.pop("out", "out")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(HastenError, match=message) as error:
        distill(
            given.pop("teacher", str(teacher)), TeacherLayers("0"), files.pop("data", text_a), out, None, options, **files, **given
        )
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    left = {entry for entry in tmp_path.iterdir() if entry not in before}
    assert left <= {tmp_path / "out.partial"} and not (tmp_path / "out").exists()
