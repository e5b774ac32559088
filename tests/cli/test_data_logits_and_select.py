"""``hasten data logits`` and ``hasten data select``: options, tables, and what a stop says."""

from __future__ import annotations

import json

import pytest

from hasten.training.distill.cached_teacher import open_cached


def test_logits_writes_a_cache_and_tells_its_size(hasten, model, text, tmp_path):
    out = tmp_path / "cache"
    ran = hasten(
        "data", "logits", model, "--data", text, "--out", str(out), "--top-k", "4", "--seq-len", "32", "--hidden-layers", "1,3"
    )
    assert ran.code == 0
    _, teacher = open_cached(out)
    facts = teacher.cache.facts
    assert (facts.top_k, facts.seq_len, facts.hidden_layers) == (4, 32, (0, 2))
    position_bytes = 4 * 2 + 5 * 2 + 2 * 64 * 2
    assert f"{position_bytes} bytes per position" in ran.err
    assert f"written to {out}" in ran.err


@pytest.mark.parametrize("layers", ["0", "1,x", ""])
def test_layers_of_another_form_are_refused(hasten, model, text, tmp_path, layers):
    ran = hasten("data", "logits", model, "--data", text, "--out", str(tmp_path / "out"), "--hidden-layers", layers)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: --hidden-layers has the wrong form")


def test_select_writes_the_examples_and_prints_what_was_dropped(hasten, tmp_path):
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out.jsonl"
    records = [{"input": f"question {number // 2}", "output": f"answer number {number // 2}", "id": number} for number in range(12)]
    pool.write_text("\n".join(map(json.dumps, records)))
    ran = hasten("data", "select", str(pool), "--by", "random", "--count", "4", "--out", str(out))
    assert ran.code == 0
    assert len(out.read_text().splitlines()) == 4
    assert [line.split()[-1] for line in ran.out.splitlines()] == ["12", "6", "2", "4"]
    assert json.loads((tmp_path / "out.jsonl.json").read_text())["dropped"]["near-duplicates of earlier examples"] == 6
    ran = hasten("data", "select", str(pool), "--by", "random", "--out", str(tmp_path / "all.jsonl"))
    assert "only 6 of 1,000 examples are left to choose" in ran.err


def test_a_mistake_is_one_line(hasten, tmp_path):
    ran = hasten("data", "select", str(tmp_path / "none.jsonl"), "--by", "best", "--out", str(tmp_path / "out"))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "by='best'" in ran.err
