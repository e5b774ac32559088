"""``hasten eval``: its metrics equal those of transformers, and invalid text is refused in one line."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.checkpoints.hub import resolve
from hasten.ops.cpu.cpu import find_cpu
from hasten.quality.documents import HELD_OUT, read_texts

TEXT = read_texts(HELD_OUT)[4][:900]
EXACT_MATCH = '{"prompt": "import os\\nimport ", "answer": "no such module"}'
CHOICE = '{"question": "if x is not", "choices": ["None", "banana", "zebra crossing"], "answer": "None"}'


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.py"
    path.write_text(TEXT, encoding="utf-8")
    return path


def transformers_nll(name: str, window: int) -> list[float]:
    """Return -log p of every token but the first; each window is scored on its own."""
    model = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32).eval()
    ids = torch.tensor(AutoTokenizer.from_pretrained(resolve(name))(TEXT)["input_ids"])
    nll = []
    for start in range(0, len(ids) - 1, window):
        chunk = ids[start : start + window + 1]
        with torch.inference_mode():
            logp = torch.log_softmax(model(chunk[None, :-1]).logits[0].double(), dim=-1)
        nll += (-logp.gather(-1, chunk[1:, None])[:, 0]).tolist()
    return nll


def test_perplexity_and_bits_per_byte_equal_those_of_transformers(hasten, file):
    ran = hasten(
        "eval", "demo-draft", "--against", "demo", "--text", str(file), "--window", "150", "--json", "-", "--dtype", "float32"
    )
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    report = json.loads(ran.out)
    quality = report["quality"]
    for side, name in (("reference", "demo"), ("candidate", "demo-draft")):
        nll = transformers_nll(name, 150)
        assert report[side]["model"] == name
        assert quality["num_tokens"] == len(nll) > 200
        assert quality[f"{side}_perplexity"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-4)
        assert quality[f"{side}_bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / len(TEXT.encode()), rel=1e-4)
    assert quality["num_windows"] == math.ceil(len(nll) / 150)
    assert {"commit", "hardware", "versions", "text", "window"} <= set(report)


def test_bfloat16_shows_a_loss_and_float32_shows_none(hasten, file, tmp_path):
    qualities = {}
    for dtype in ("float32", "bfloat16"):
        saved = tmp_path / f"{dtype}.json"
        ran = hasten("eval", "demo", "--text", str(file), "--num-tokens", "200", "--dtype", dtype, "--json", str(saved))
        assert ran.code == 0
        assert [
            word for word in ("mean KL", "top-1 agreement", "perplexity", "bits per byte", "p99", "max") if word not in ran.out
        ] == []
        assert "200 tokens in 1 window " in ran.err
        report = json.loads(saved.read_text())
        assert (report["reference"]["dtype"], report["candidate"]["dtype"]) == ("float32", dtype)
        qualities[dtype] = report["quality"]
    assert qualities["float32"]["kl_max"] < 1e-9
    assert qualities["float32"]["top1_agreement"] == 1.0
    assert 1e-6 < qualities["bfloat16"]["kl_mean"] < 1e-2
    assert qualities["bfloat16"]["kl_mean"] <= qualities["bfloat16"]["kl_p99"] <= qualities["bfloat16"]["kl_max"]


def test_the_table_has_sizes_and_intervals(hasten, file, tmp_path):
    saved = tmp_path / "result.json"
    arguments = ("--text", str(file), "--window", "50", "--num-tokens", "200", "--dtype", "float32", "--json", str(saved))
    ran = hasten("eval", "demo-draft", "--against", "demo", *arguments)
    assert ran.code == 0
    report = json.loads(saved.read_text())
    quality, sizes = report["quality"], [report[side]["file_bytes"] for side in ("reference", "candidate")]
    lines = {line.split("  ")[0]: line for line in ran.out.splitlines()}
    assert re.split(r"\s{2,}", lines["weights in files"].strip())[1:] == [
        *(f"{size / 1e6:,.1f} MB" for size in sizes),
        f"{sizes[1] / sizes[0]:.3f}",
    ]
    assert re.split(r"\s{2,}", lines["bits per weight"].strip())[1:] == ["16.00", "16.00"]
    low, high = quality["kl_interval"]
    assert f"{low:.3g} to {high:.3g}" in lines["mean KL, nats"] and quality["kl_upper_bound"] == high
    for name in ("reference_perplexity", "candidate_perplexity", "perplexity_ratio"):
        low, high = quality[f"{name}_interval"]
        assert low < quality[name] < high
        assert f"{quality[name]:.4f} ({low:.4f} to {high:.4f})" in lines["perplexity"]


def test_a_task_is_scored_alone_and_against_a_reference(hasten, tmp_path):
    task, saved = tmp_path / "task.jsonl", tmp_path / "result.json"
    task.write_text(f"{EXACT_MATCH}\n\n{CHOICE}\n")
    ran = hasten("eval", "demo", "--task", str(task), "--max-tokens", "4")
    assert ran.code == 0 and "task.jsonl: 2 items" in ran.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in ran.out.splitlines()]
    assert rows == [
        ["METRIC", "ITEMS", "SCORE (95 %)"],
        ["exact_match", "1", "0.0% (0.0% to 79.3%)"],
        ["acc", "1", "100.0% (20.7% to 100.0%)"],
        ["acc_norm", "1", "100.0% (20.7% to 100.0%)"],
    ]
    ran = hasten("eval", "demo-draft", "--against", "demo", "--task", str(task), "--json", str(saved), "--ignore-case")
    rows = [re.split(r"\s{2,}", line.strip()) for line in ran.out.splitlines()]
    assert rows[0][-5:] == ["REFERENCE (95 %)", "CANDIDATE (95 %)", "DIFFERENCE (95 %)", "ONLY REFERENCE", "ONLY CANDIDATE"]
    assert rows[1] == ["exact_match", "1", *["0.0% (0.0% to 79.3%)"] * 2, "+0.0 (-79.3 to +79.3) points", "0", "0"]
    report = json.loads(saved.read_text())
    assert {"commit", "hardware", "versions", "task"} <= set(report)
    assert (report["benchmark"], report["options"]["ignore_case"], report["options"]["max_tokens"]) == ("task", True, 64)
    assert [item["line"] for item in report["candidate"]["items"]] == [1, 3]
    assert (report["reference"]["model"]["model"], report["reference"]["model"]["dtype"]) == ("demo", "float32")
    assert [each["metric"] for each in report["differences"]] == ["exact_match", "acc", "acc_norm"]


def test_ctrl_c_during_a_task_leaves_no_result(hasten, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    task, saved = tmp_path / "task.jsonl", tmp_path / "result.json"
    task.write_text(f"{EXACT_MATCH}\n{CHOICE}\n")
    monkeypatch.setattr("hasten.entrypoints.llm.LLM.score", interrupt)
    ran = hasten("eval", "demo", "--task", str(task), "--json", str(saved))
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err and not saved.exists()


@pytest.mark.parametrize("option", [("--quantization", "int8"), ("--kv-cache-dtype", "int8")], ids=" ".join)
def test_int8_shows_a_loss(hasten, file, option):
    """Everything else is in float32, whose loss is below 1e-9."""
    ran = hasten("eval", "demo", "--text", str(file), "--num-tokens", "200", "--dtype", "float32", *option, "--json", "-")
    if isinstance(find_cpu(1), str):  # without native kernels no other format replaces int8 silently
        assert (ran.code, ran.out) == (2, "")
        assert "native" in ran.err
        return
    report = json.loads(ran.out)
    assert report["candidate"][option[0].strip("-").replace("-", "_")] == "int8"
    assert 1e-6 < report["quality"]["kl_mean"] < 1e-2
    assert 0.9 < report["quality"]["top1_agreement"] <= 1.0


@pytest.mark.parametrize(
    "option",
    [
        ("--exits", "demo-exits"),
        ("--speculative-method", "off"),
        ("--draft-model", "demo-draft"),
        ("--draft-heads", "demo-eagle"),
        ("--draft-quantization", "int8"),
        ("--self-draft-layers", "2"),
        ("--num-speculative-tokens", "2"),
    ],
    ids=" ".join,
)
def test_decoding_options_are_refused(hasten, file, option):
    ran = hasten("eval", "demo", "--text", str(file), "--num-tokens", "20", *option)
    assert (ran.code, ran.out) == (2, "")
    assert option[0] in ran.err


def test_a_checkpoint_without_a_tokenizer_scores_token_ids(hasten, tiny, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("5 6 7 8 9 10\n11,12,13\n")
    ran = hasten("eval", str(tiny("llama-gqa")), "--token-ids", str(ids), "--json", "-")
    quality = json.loads(ran.out)["quality"]
    assert (quality["num_tokens"], quality["num_windows"], quality["reference_bits_per_byte"]) == (7, 2, None)
    assert quality["kl_max"] < 1e-9
    table = hasten("eval", str(tiny("llama-gqa")), "--token-ids", str(ids))
    assert "perplexity" in table.out and "bits per byte" not in table.out
    refused = hasten("eval", str(tiny("llama-gqa")))
    assert refused.code == 2
    assert "no tokenizer" in refused.err and "--token-ids" in refused.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--text", "nothing.txt"], "nothing.txt cannot be read"),
        (["--text", "."], "cannot be read"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "photo.png"], "photo.png is not text"),
        (["--text", "text.py", "--token-ids", "ids.txt"], "text and token_ids exclude each other"),
        (["--token-ids", "ids.txt"], "allowed: whole numbers from 0 to 8191"),
        (["--token-ids", "one.txt"], "too short"),
        (["--window", "5000"], "allowed: 1 to 4096"),
        (["--window", "300", "--max-model-len", "200"], "allowed: 1 to 200"),
        (["--num-tokens", "0"], "number of tokens is out of range"),
        (["--json", "no/such/folder.json"], "cannot be written"),
        (["--json", "."], "cannot be written"),
        (["--dtype", "float31"], "Did you mean 'float32'"),
        (["--against", "tiny"], "different vocabularies"),
        (["--task", "nothing.jsonl"], "nothing.jsonl cannot be read"),
        (["--task", "empty.txt"], "empty.txt is empty"),
        (["--task", "wrong.jsonl"], "line 2 of wrong.jsonl: this is not JSON: got '{'"),
        (["--task", "task.jsonl", "--text", "text.py"], "--text is for texts, and --task has none"),
        (["--task", "task.jsonl", "--num-tokens", "9", "--window", "9"], "got --window, --num-tokens"),
        (["--task", "task.jsonl", "--max-tokens", "0"], "max_tokens=0 (allowed: 1 to 1048576)"),
        (["--task", "task.jsonl", "--max-tokens", "5000"], "line 1 of task.jsonl: prompt and answer do not fit the context"),
        (["--max-tokens", "9"], "--max-tokens needs --task"),
        (["--chat"], "--chat needs --task"),
    ],
)
def test_text_that_cannot_be_scored_is_refused(hasten, tiny, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text.py").write_text(TEXT)
    (tmp_path / "ids.txt").write_text("1 2 8192")
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "task.jsonl").write_text(EXACT_MATCH)
    (tmp_path / "wrong.jsonl").write_text(f"{EXACT_MATCH}\n{{\n")
    ran = hasten("eval", "demo", *[str(tiny("llama-gqa")) if argument == "tiny" else argument for argument in arguments])
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert ran.err.count("error: ") == 1
