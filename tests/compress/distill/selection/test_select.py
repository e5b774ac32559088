"""Selection of examples end to end: criteria against transformers, reports, and what is refused."""

from __future__ import annotations

import json
import random
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from tests.training.conftest import PERIOD, fluent_model, model, periodic_text  # noqa: F401  (fixtures)
from transformers import AutoModelForCausalLM, PreTrainedModel

from hasten import LLM
from hasten.compress.distill.selection.ifd import NO_HELP
from hasten.compress.distill.selection.lengths import TOO_LONG, TOO_SHORT
from hasten.compress.distill.selection.losses import example_losses
from hasten.compress.distill.selection.near_duplicates import NEAR_DUPLICATES
from hasten.compress.distill.selection.options import METHODS, SelectOptions
from hasten.compress.distill.selection.select import NOT_CHOSEN, TOO_MANY_TOKENS, select_examples
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.training.examples import Example
from hasten.training.target_model import TargetModel

EOS = 2


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    """Half of the outputs continue the periodic text that the fluent model knows; the others are random."""
    generator = random.Random(0)
    made: list[dict[str, object]] = []
    for number in range(40):
        phase, length = generator.randrange(PERIOD), generator.randrange(6, 16)
        words = [f"w{10 + (phase + position) % PERIOD}" for position in range(length)]
        words[0] = f"w{30 + number}"  # no two records have the same shingles
        if number % 2:
            words[3:] = [f"w{generator.randrange(30, 100)}" for _ in words[3:]]
        made.append({"id": number, "input": " ".join(words[:3]), "output": " ".join(words[3:]), "tags": ["ä", number]})
    return made


@pytest.fixture
def data(records, tmp_path) -> Path:
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in records) + "\n\n", encoding="utf-8")
    return file


@pytest.fixture
def select(data, model, fluent_model, tmp_path):  # noqa: F811
    """Return a function that selects and returns the written records and the report."""

    def call(**options):
        given = SelectOptions(threads=1, max_similarity=1.0, **options)
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}.jsonl"
        models = {
            "student": str(model) if given.needs_student else None,
            "teacher": str(fluent_model) if given.needs_teacher else None,
        }
        selection = select_examples(data, out, given, **models)
        lines = out.read_text(encoding="utf-8").splitlines()
        report = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
        assert len(lines) == len(selection.chosen) == len(report["chosen"])
        assert report["given"] == len(selection.chosen) + sum(report["dropped"].values())
        return [json.loads(line) for line in lines], report

    return call


@lru_cache
def reference_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def reference_loss(folder: Path, input_ids: list[int], output_ids: list[int]) -> float:
    """Return the sum over output tokens, by transformers."""
    reference = reference_model(folder)
    labels = torch.tensor([[-100] * len(input_ids) + output_ids])
    sequence = torch.tensor([[*input_ids, *output_ids]])
    with torch.no_grad():
        logits = reference(sequence).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.double(), labels[0, 1:], ignore_index=-100, reduction="sum"))


def test_losses_and_embeddings_are_those_of_transformers_and_the_engine(model):  # noqa: F811
    examples = [Example(ids("w5 w6 w7 w8 w9"), 2), Example(ids("w30 w31"), 1), Example(ids("w40 w41 w42 w43 w44 w45 w46"), 0)]
    measured = example_losses(TargetModel.load(model), examples, batch=2)
    for index, example in enumerate(examples):
        skipped = max(1, example.num_input)
        expected = reference_loss(model, example.ids[:skipped], example.ids[skipped:])
        assert float(measured.sums_N[index]) == pytest.approx(expected, rel=1e-4)
        assert int(measured.counts_N[index]) == len(example.ids) - skipped
    with LLM(str(model), dtype="float32", threads=1, max_model_len=64) as llm:
        expected = llm.embed([{"prompt_token_ids": example.ids} for example in examples])
    torch.testing.assert_close(measured.embeddings_NE, expected, rtol=1e-3, atol=1e-4)


def test_the_loss_gap_ranks_by_what_the_teacher_knows(select, records, model, fluent_model):  # noqa: F811
    chosen, report = select(by="loss-gap", count=10)
    gaps = {}
    for each in records:
        output = [*ids(each["output"]), EOS]
        losses = [reference_loss(folder, ids(each["input"]), output) for folder in (model, fluent_model)]
        gaps[each["id"]] = (losses[0] - losses[1]) / len(output)
    expected = sorted(gaps, key=lambda number: -gaps[number])[:10]
    assert [each["id"] for each in chosen] == expected
    assert [entry["score"] for entry in report["chosen"]] == pytest.approx([gaps[number] for number in expected], rel=1e-3)
    assert [entry["line"] for entry in report["chosen"]] == [number + 1 for number in expected]
    assert sum(number % 2 for number in expected) <= 2  # most are of the text that the teacher knows
    assert chosen[0] == records[expected[0]]  # with all keys


def test_ifd_ranks_by_the_loss_with_input_over_the_loss_without(select, records, model):  # noqa: F811
    chosen, report = select(by="ifd", count=40)
    ratios = {}
    for each in records:
        given, output = ids(each["input"]), [*ids(each["output"]), EOS]
        after, alone = reference_loss(model, [*given, output[0]], output[1:]), reference_loss(model, output[:1], output[1:])
        ratios[each["id"]] = after / alone
    helped = {number: ratio for number, ratio in ratios.items() if ratio < 1}
    assert [each["id"] for each in chosen] == sorted(helped, key=lambda number: -helped[number])
    assert 0 < report["dropped"][NO_HELP] == len(ratios) - len(helped)


def test_diverse_examples_are_chosen_from_the_best(select):
    best, _ = select(by="loss-gap", count=12)
    chosen, report = select(by="loss-gap+diversity", count=4, pool=3)
    assert chosen[0] == best[0]
    assert {each["id"] for each in chosen} < {each["id"] for each in best}
    assert {each["id"] for each in chosen} != {each["id"] for each in best[:4]}
    assert report["dropped"][NOT_CHOSEN] == 36


def test_a_random_choice_depends_on_the_seed_alone(select):
    first, again, other = (select(by="random", count=20, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert len({each["id"] for each in first}) == 20


@pytest.mark.parametrize("by", METHODS)
def test_no_method_chooses_both_of_planted_near_duplicates(by, select, data, records):
    planted = []
    for each in records[:20]:
        words = str(each["output"]).split()
        planted.append({**each, "id": each["id"] + 100, "output": " ".join(words).upper().lower() + " "})
    data.write_text("\n".join(map(json.dumps, [*records, *planted])), encoding="utf-8")
    chosen, report = select(by=by, count=60)
    assert report["dropped"][NEAR_DUPLICATES] == 20
    assert max(each["id"] for each in chosen) < 100


def test_lengths_are_limited(select, records):
    chosen, report = select(by="random", count=40, min_words=5, max_words=12)
    lengths = [(len(ids(each["output"])), len(ids(each["input"]))) for each in records]
    assert report["dropped"][TOO_SHORT] == sum(output < 5 for output, _ in lengths) > 0
    assert report["dropped"][TOO_LONG] == sum(output + given > 12 for output, given in lengths) > 0
    assert len(chosen) == sum(5 <= output <= 12 - given for output, given in lengths)


def test_examples_that_the_models_cannot_read_are_dropped(select, data, records):
    long = {"input": "w5", "output": " ".join(["w6 w7 w9"] * 20)}
    data.write_text("\n".join(map(json.dumps, [long, *records])), encoding="utf-8")
    chosen, report = select(by="diversity", count=60, seq_len=32)
    assert report["dropped"][TOO_MANY_TOKENS] == 1
    assert len(chosen) == 40


def test_what_cannot_be_chosen_from_is_refused(data, model, tmp_path):  # noqa: F811
    out = tmp_path / "out.jsonl"
    run = partial(select_examples, data, out)
    for options, models, expected in (
        (SelectOptions(), {}, r"loss-gap\+diversity needs a student"),
        (SelectOptions(), {"student": str(model)}, "needs a teacher"),
        (SelectOptions(by="ifd"), {"student": str(model), "teacher": str(model)}, "ifd reads no teacher"),
        (SelectOptions(by="random", min_words=1000), {}, "no example is left to choose: got 40 outputs of too few words"),
        (SelectOptions(by="diversity", min_words=1000), {"student": str(model)}, "no example is left"),
    ):
        with pytest.raises(InvalidOption, match=expected):
            run(options, **models)
    data.write_text('{"input": "a", "output": "b"}\n{"input": "a"}\n', encoding="utf-8")
    with pytest.raises(InvalidOption, match=r"line 2 of .* is no example"):
        run(SelectOptions(by="random"))
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(InvalidOption, match="the output file exists"):
        run(SelectOptions(by="random"))


def test_a_damaged_model_is_one_clear_error(model):  # noqa: F811
    target = TargetModel.load(model)
    target.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="losses that are not finite"):
        example_losses(target, [Example([5, 6, 7], 1)], batch=1)


def test_a_stopped_selection_writes_nothing(data, tmp_path):
    assert select_examples(data, tmp_path / "out", SelectOptions(by="random", threads=1), should_stop=lambda: True) is None
    assert [file.name for file in tmp_path.iterdir()] == ["pool.jsonl"]
