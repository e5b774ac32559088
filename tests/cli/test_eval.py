"""``hasten eval``: its metrics equal those of transformers, and invalid text is refused in one line."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.checkpoints.hub import resolve
from hasten.ops.cpu.cpu import find_cpu
from hasten.quality.documents import HELD_OUT, read_texts

TEXT = read_texts(HELD_OUT)[4][:900]


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
        "eval", "demo-draft", "--reference", "demo", "--text", str(file), "--window", "150", "--json", "-", "--dtype", "float32"
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
        (["--reference", "tiny"], "different vocabularies"),
    ],
)
def test_text_that_cannot_be_scored_is_refused(hasten, tiny, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text.py").write_text(TEXT)
    (tmp_path / "ids.txt").write_text("1 2 8192")
    (tmp_path / "one.txt").write_text("1")
    ran = hasten("eval", "demo", *[str(tiny("llama-gqa")) if argument == "tiny" else argument for argument in arguments])
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err
    assert ran.err.count("error: ") == 1
