"""``hasten presets``, and files of settings on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten import SamplingParams
from hasten.cli.report import changed_settings
from hasten.sampling.presets import PRESETS, preset


def test_each_preset_is_a_line_with_its_settings_and_its_reason(hasten: Callable[..., Any]) -> None:
    for language in ("en", "zh"):
        ran = hasten("presets", "--language", language)
        lines = ran.out.splitlines()[1:]
        assert (ran.code, ran.err) == (0, "")
        assert [line.split()[0] for line in lines] == list(PRESETS)
        assert all(entry.explain(language) in line for line, entry in zip(lines, PRESETS.values(), strict=True))


def test_one_preset_as_json(hasten: Callable[..., Any]) -> None:
    ran = hasten("presets", "poetry", "--json", "--language", "zh")
    assert json.loads(ran.out) == [{"name": "poetry", "settings": preset("poetry"), "reason": PRESETS["poetry"].reason_zh}]
    ran = hasten("presets", "peotry")
    assert (ran.code, ran.out) == (2, "") and "Did you mean 'poetry'" in ran.err


def test_a_file_of_settings_reaches_the_sampler(hasten: Callable[..., Any], model: str, tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_text(json.dumps({"temperature": 0, "max_tokens": 3, "top_p": 0.5}))
    options = ("--params", str(file), "--preset", "creative", "--dtype", "float32", "--kv-cache-memory", "16MiB")
    ran = hasten("generate", model, "w1 w2", *options, "--top-p", "0.7", "--json")
    output = json.loads(ran.out)
    assert output["params"] == {"temperature": 0.0, "max_tokens": 3, "top_p": 0.7}
    assert len(output["outputs"][0]["token_ids"]) == 3
    assert "temperature=0.0 (file), top_p=0.7 (option), max_tokens=3 (file)" in ran.err


@pytest.mark.parametrize("command", ["generate", "chat", "diagnose"])
def test_a_wrong_file_is_one_error_before_a_model_is_loaded(hasten: Callable[..., Any], tmp_path: Path, command: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("temprature: 1")
    ran = hasten(command, "no-such-model", *(["x"] if command == "generate" else []), "--params", str(file))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "Did you mean 'temperature'" in ran.err


def test_printed_settings_are_read_back_with_the_settings_within_them() -> None:
    params = SamplingParams(structured_outputs={"regex": "a+"}, logit_bias={5: 1}, stop=("x",), top_k=3)
    assert SamplingParams.from_dict(json.loads(json.dumps(changed_settings(params)))) == params
