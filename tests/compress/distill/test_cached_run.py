"""A student learns from a cache of its teacher's outputs as from the teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.compress.distill.conftest import write_jsonl

from hasten.compress.distill.cache_options import CacheOptions
from hasten.compress.distill.cache_teacher import cache_teacher
from hasten.compress.distill.curves import panels
from hasten.compress.distill.run import distill
from hasten.compress.distill.student import TeacherLayers
from hasten.core.errors import CheckpointError, HastenError, InvalidOption
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel

OPTIONS = TrainOptions(steps=8, batch=2, seq_len=32, lr=3e-3, seed=4, patience=99)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Batches of examples are the same with a cache; of a text, a cache fixes the windows."""
    records = [{"input": f"w{10 + i % 7} w{20 + i}", "output": f"w{11 + i % 7} w{30 + i}"} for i in range(30)]
    return write_jsonl(tmp_path_factory.mktemp("examples") / "examples.jsonl", records)


def cached(teacher: Path, data: Path, out: Path, **changes) -> Path:
    assert cache_teacher(str(teacher), data, out, CacheOptions(**{"top_k": 101, "seq_len": 32, **changes})) is not None
    return out


def test_a_cache_of_all_tokens_gives_the_losses_of_the_teacher(teacher, examples, text_a, tmp_path, monkeypatch):
    cache = cached(teacher, examples, tmp_path / "cache")
    arguments = (str(teacher), TeacherLayers("0,2"), examples)
    live = distill(*arguments, tmp_path / "live", options=OPTIONS, outside=text_a)
    frozen = distill(*arguments, tmp_path / "frozen", options=OPTIONS, outside=text_a, cache=cache)
    reports = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("live", "frozen")]
    for ours, theirs in zip(*(report["evaluations"] for report in reports), strict=True):
        for name in ("train_loss", "kl", "perplexity"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-2), "log-probabilities are stored in float16"
        assert "kl" in ours["outside"] and "kl" not in theirs["outside"]
        assert theirs["outside"]["perplexity"] == pytest.approx(ours["outside"]["perplexity"], rel=2e-2)
    assert live.teacher_score is not None and frozen.teacher_score is None
    assert len(reports[1]["teacher_cache_sha256"]) == 64
    assert load_file(tmp_path / "frozen" / "model.safetensors").keys() == load_file(tmp_path / "live" / "model.safetensors").keys()

    def refuse(*_, **__):
        raise AssertionError("the teacher was loaded")

    small = tmp_path / "live"
    monkeypatch.setattr(TargetModel, "load", refuse)
    from hasten.compress.distill.student import StudentCheckpoint

    assert (
        distill(str(teacher), StudentCheckpoint(str(small)), examples, tmp_path / "next", options=OPTIONS, cache=cache) is not None
    )


def test_a_text_is_read_in_the_windows_of_the_cache(teacher, text_a, text_b, tmp_path):
    cache = cached(teacher, text_a, tmp_path / "cache", top_k=8)
    result = distill(str(teacher), TeacherLayers("0"), text_a, tmp_path / "out", options=OPTIONS, outside=text_b, cache=cache)
    evaluations = json.loads((tmp_path / "out" / "training.json").read_text())["evaluations"]
    assert evaluations[-1]["coarse_kl"] < evaluations[0]["coarse_kl"] and result.score.outside.kl is None
    assert "kl" not in evaluations[0] and evaluations[0]["coarse_kl_tokens"] == 8
    assert [row[0] for row in result.rows()][:2] == [
        "inside the set: mean KL of 8 tokens and the rest, nats",
        "inside the set: top-1 agreement",
    ]
    titles = [panel.title for panel in panels(evaluations)]
    assert titles == ["loss", "KL divergence of 8 tokens and the rest, nats", "perplexity", "same top token"]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"recipe": DistillRecipe(on_policy=0.5)}, InvalidOption, "outputs that the student generates"),
        ({"recipe": DistillRecipe(hidden_weight=0.5)}, InvalidOption, "hidden states"),
        ({"recipe": DistillRecipe(temperature=2.0)}, InvalidOption, "temperature"),
        ({"replay": True}, InvalidOption, "a teacher cache has no replayed text"),
        ({"self_distill": 3}, InvalidOption, "no text that it continues: got 3"),
        ({"seq_len": 64}, InvalidOption, "another seq_len"),
        ({"data": True}, InvalidOption, "another data"),
        ({"teacher": True}, InvalidOption, "another teacher"),
        ({"cache": "missing"}, HastenError, "cannot be read|no teacher cache"),
        ({"damaged": True}, CheckpointError, "damaged"),
    ],
)
def test_what_a_cache_does_not_hold_is_refused(teacher, plain_model, text_a, text_b, tmp_path, changed, error, message):
    cache = cached(teacher, text_a, tmp_path / "cache", top_k=8)
    if changed.get("damaged"):
        (cache / "cache.json").write_text("{}")
    replaced = {name: changed[name] for name in ("self_distill", "seq_len") if name in changed}
    with pytest.raises(error, match=message):
        distill(
            str(plain_model if changed.get("teacher") else teacher),
            TeacherLayers("0"),
            text_b if changed.get("data") else text_a,
            tmp_path / "out",
            changed.get("recipe"),
            dataclasses.replace(OPTIONS, **replaced),
            replay=text_a if changed.get("replay") else None,
            cache=tmp_path / changed["cache"] if "cache" in changed else cache,
        )
    assert not (tmp_path / "out").exists()
