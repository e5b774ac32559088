"""A card is read by the hub's own parser, and says what was measured and what was not."""

from __future__ import annotations

import dataclasses
import re
import resource
import time
from pathlib import Path

import huggingface_hub
import pytest

from hasten import __version__
from hasten.compress.model_card import CalibrationText, Figures, ModelCard, card_text, write_model_card
from hasten.compress.source_license import source_license
from hasten.core.errors import CapacityError, InvalidOption
from hasten.quality.quality import Quality

QUALITY = Quality(
    num_tokens=16_384,
    num_windows=32,
    num_bytes=60_000,
    kl_mean=0.0123,
    kl_standard_error=0.001,
    kl_median=0.01,
    kl_p99=0.1,
    kl_max=1.0,
    top1_agreement=0.9712,
    top1_standard_error=0.001,
    reference_perplexity=12.34567,
    candidate_perplexity=12.5,
    reference_nll_standard_error=0.01,
    candidate_nll_standard_error=0.01,
    nll_difference_standard_error=0.001,
    reference_bits_per_byte=None,
    candidate_bits_per_byte=None,
)
CARD = ModelCard(
    name="Qwen3-0.6B-4bit",
    base_model="Qwen/Qwen3-0.6B",
    license={"license": "apache-2.0", "license_link": "LICENSE"},
    method="gptq",
    format="compressed-tensors",
    bits=4,
    group_size=128,
    options={"damp_percent": 0.01, "symmetric": True},
    calibration=CalibrationText(name="calibration.jsonl", sha256="0123abcd", samples=128, seq_len=512, seed=7),
    figures=Figures(
        bytes_before=1_192_099_840,
        bytes_after=543_210_000,
        quality=QUALITY,
        text="the held-out text",
        tokens_per_second_before=20.04,
        tokens_per_second_after=45.26,
        machine="AMD EPYC, 2 cores",
    ),
)
BARE = ModelCard(name="my model", base_model=None, method="cast", format="safetensors", bits=None)


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of every row of a table, by the first one."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    write_model_card(tmp_path, CARD)
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "license_link": "LICENSE",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hasten", "gptq", "compressed-tensors", "4-bit"],
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "README.md"]


def test_recipe_and_figures() -> None:
    cells = rows(card_text(CARD))
    assert cells["method"] == ["gptq"] and cells["format"] == ["compressed-tensors"]
    assert cells["bits"] == ["4"] and cells["group size"] == ["128"]
    assert cells["damp percent"] == ["0.01"] and cells["symmetric"] == ["True"]
    assert cells["calibration text"] == ["calibration.jsonl"] and cells["SHA-256 of the sequences"] == ["0123abcd"]
    assert cells["calibration sequences"] == ["128 of 512 tokens, seed 7"]
    assert cells["weights, bytes"] == ["1,192,099,840", "543,210,000"]
    # 0.0123 ± 2.0395 × 0.001: Student's t for 32 windows
    assert cells["KL divergence, nats per token"] == ["", "0.0123 (95 % interval 0.01026 to 0.01434)"]
    assert cells["same most likely token"] == ["", "97.12% (95 % interval 96.92% to 97.32%)"]
    assert cells["perplexity"] == ["12.3457", "12.5000"]
    assert cells["tokens per second, batch 1"] == ["20.0", "45.3"]
    assert f"with hasten {__version__}" in card_text(CARD)
    assert "Quality on the held-out text. Speed on AMD EPYC, 2 cores." in card_text(CARD)


def test_a_model_of_other_sizes_says_more() -> None:
    figures = dataclasses.replace(
        CARD.figures,
        parameters_before=8_000_000,
        parameters_after=6_000_000,
        other_texts={"my|text": dataclasses.replace(QUALITY, kl_mean=0.5)},
        batch_tokens_per_second_before=100.04,
        batch_tokens_per_second_after=140.0,
    )
    text = card_text(dataclasses.replace(CARD, relation="finetune", notes=("It is <new>.",), figures=figures))
    cells = rows(text)
    assert huggingface_hub.ModelCard(text).data.to_dict()["base_model_relation"] == "finetune"
    assert cells["parameters"] == ["8,000,000", "6,000,000"] and "\nIt is &lt;new>.\n" in text
    assert cells["tokens per second, batch 8"] == ["100.0", "140.0"]
    assert cells["KL divergence, nats per token"][1].startswith("0.0123")
    assert cells["KL divergence, nats per token, my\\|text"][1].startswith("0.5")


def test_what_is_absent_is_called_so(tmp_path: Path) -> None:
    text = card_text(BARE)
    cells = rows(text)
    for name in ("weights, bytes", "KL divergence, nats per token", "perplexity", "tokens per second, batch 1"):
        assert cells[name][-1] == "not measured"
    assert cells["calibration"] == ["none"] and "bits" not in cells and "group size" not in cells
    assert "parameters" not in cells and "tokens per second, batch 8" not in cells
    write_model_card(tmp_path, BARE)
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["hasten", "cast"]}


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("compressed-tensors", ", with the package compressed-tensors:"),
        ("gptq", ", with the packages gptqmodel and optimum:"),
        ("awq", ", with the packages gptqmodel and accelerate:"),
        ("fp8", ", with the package accelerate:"),
        ("safetensors", ":"),
    ],
)
def test_commands(name: str, packages: str) -> None:
    text = card_text(ModelCard(name="my model", base_model=None, method="x", format=name, bits=4))
    assert "hasten generate './my model' " in text and "vllm serve './my model'" in text
    assert f"In transformers{packages}\n" in text
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert python is not None
    compile(python.group(1), "card", "exec")
    assert 'from_pretrained("./my model", dtype="auto")' in python.group(1)


def test_odd_names_break_neither_tables_nor_code(tmp_path: Path) -> None:
    odd = 'a|b\n---\n"; <script>`$(rm -rf x)`'
    text = CalibrationText(name=odd, sha256="0", samples=1, seq_len=2, seed=0)
    card = ModelCard(name=odd, base_model=odd, method="rtn", format="gptq", bits=None, calibration=text, options={"ignore": odd})
    write_model_card(tmp_path, card)
    written = (tmp_path / "README.md").read_text()
    assert huggingface_hub.ModelCard(written, ignore_metadata_errors=False).data.to_dict()["base_model"] == odd
    assert rows(written)["calibration text"] == ['a\\|b --- "; &lt;script>`$(rm -rf x)`']
    assert rows(written)["bits"] == ["mixed"]
    body = written.split("\n---\n", 2)[-1]
    assert "<script>" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    (python,) = re.findall(r"```python\n(.*?)```\n", body, re.DOTALL)
    compile(python, "card", "exec")


def test_one_window_has_no_interval() -> None:
    single = dataclasses.replace(QUALITY, kl_standard_error=None, top1_standard_error=None)
    cells = rows(card_text(dataclasses.replace(CARD, figures=Figures(quality=single))))
    assert cells["KL divergence, nats per token"] == ["", "0.0123"] and cells["same most likely token"] == ["", "97.12%"]
    uncertain = dataclasses.replace(QUALITY, kl_standard_error=0.01)
    cells = rows(card_text(dataclasses.replace(CARD, figures=Figures(quality=uncertain))))
    assert cells["KL divergence, nats per token"] == ["", "0.0123 (95 % interval 0 to 0.0327)"]


def test_a_full_disk_keeps_the_card_that_was_there(tmp_path: Path) -> None:
    write_model_card(tmp_path, BARE)
    old = (tmp_path / "README.md").read_text()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(CapacityError, match=r"README\.md cannot be written: got File too large"):
            write_model_card(tmp_path, CARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "README.md").read_text() == old
    assert list(tmp_path.iterdir()) == [tmp_path / "README.md"]
    with pytest.raises(InvalidOption, match="cannot be written"):
        write_model_card(tmp_path / "none", CARD)


@pytest.mark.parametrize(
    ("front_matter", "found"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: [mit, 'apache-2.0']  # both\nlanguage: en", {"license": ["mit", "apache-2.0"]}),
        ("language: en\nlicense:  # both\n- mit\n  - apache-2.0\ntags:\n- x", {"license": ["mit", "apache-2.0"]}),
        (
            'license: other\nlicense_name: llama3\nlicense_link: "https://example.org/LICENSE"',
            {"license": "other", "license_name": "llama3", "license_link": "https://example.org/LICENSE"},
        ),
        ("license: {a: b}\nlicense_name: <b>\nlicense_link: ''", {}),
        ('license: "a\\nb"', {}),
        ("license: [mit, <b>]", {}),
        ("- a list", {}),
        ("license: [", {}),
        ("!!python/object/apply:os.system ['true']", {}),
        ("[" * 3_000, {}),
        ("", {}),
        (f"license: {'m' * 500}", {}),
    ],
)
def test_the_licence_is_taken_from_the_source(tmp_path: Path, front_matter: str, found: dict[str, object]) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    assert source_license(tmp_path) == found


def test_a_hostile_card_takes_no_time(tmp_path: Path) -> None:
    """Merge keys that double at each line take a YAML library exponential time; a list without end recurses."""
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))
    for front_matter in (merges, "[" * 200_000, "license:\n" * 20_000, "---\n" * 50_000):
        (tmp_path / "README.md").write_text(f"---\n{front_matter}license: mit\n---\n")
        began = time.process_time()
        source_license(tmp_path)
        assert time.process_time() - began < 5


def test_sources_without_a_card(tmp_path: Path) -> None:
    assert source_license(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert source_license(tmp_path) == {}
    (tmp_path / "README.md").write_text("license: mit")
    assert source_license(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n" + " " * (1 << 18) + "\n---\n")
    assert source_license(tmp_path) == {}
    assert source_license(tmp_path / "none") == {}
