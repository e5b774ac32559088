"""Files of sampling settings: the values of JSON, whatever the format; one clear error for everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import SamplingParams
from hasten.core.errors import HastenError, InvalidOption
from hasten.entrypoints.params_file import MAX_BYTES, read_params_file

VALUES = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 1e-1,
    "stop": ["\n\n", "no", "12"],
    "logit_bias": {"42": -5, "7": 1.5},
    "bad_words_ids": [[1, 2], [3]],
    "ignore_eos": True,
    "seed": 7,
    "max_tokens": None,
}


def write(folder: Path, text: str, name: str = "params.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name, dump", [("p.json", json.dumps), ("p.yaml", json.dumps), ("p.yml", yaml.safe_dump)])
def test_a_file_has_the_values_that_a_library_wrote(tmp_path: Path, name: str, dump: Any) -> None:
    read = read_params_file(write(tmp_path, dump(VALUES), name))
    assert SamplingParams(**read) == SamplingParams.from_dict(VALUES)
    assert set(read) == set(VALUES)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 10),
            "top_p": st.floats(0.01, 1),
            "seed": st.integers(0, 2**63 - 1),
            "stop": st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8), max_size=3),
            "ignore_eos": st.booleans(),
            "early_stopping": st.sampled_from([True, False, "never"]),
        },
    )
)
def test_yaml_and_json_mean_the_same(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("params")
    from_yaml = read_params_file(write(folder, yaml.safe_dump(values)))
    from_json = read_params_file(write(folder, json.dumps(values), "p.json"))
    assert from_yaml == from_json == {**values, **({"stop": tuple(values["stop"])} if "stop" in values else {})}


def test_settings_within_the_settings_are_read_and_explain_their_own_faults(tmp_path: Path) -> None:
    read = read_params_file(write(tmp_path, "structured_outputs: {regex: '[a-z]+'}"))
    assert SamplingParams(**read) == SamplingParams.from_dict({"structured_outputs": {"regex": "[a-z]+"}})
    with pytest.raises(InvalidOption, match=r"the setting structured_outputs: .*regex"):
        read_params_file(write(tmp_path, "structured_outputs: {regex: 5}"))


def test_words_that_yaml_once_took_for_numbers_and_booleans_are_texts(tmp_path: Path) -> None:
    assert read_params_file(write(tmp_path, "stop: [no, on, 12:30:00, 0x10, ~x]"))["stop"] == ("no", "on", "12:30:00", "0x10", "~x")
    assert read_params_file(write(tmp_path, "temperature: 1e-1\ntop_k: null"))["temperature"] == 0.1


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.yaml", "temprature: 1", "unknown sampling setting: got 'temprature'. Did you mean 'temperature'"),
        ("p.yaml", "temperature: hot", r"temperature is out of range: got 'hot'; allowed: from 0"),
        ("p.yaml", 'temperature: "0.7"', "temperature is out of range: got '0.7'"),
        ("p.yaml", "top_p: 2", "top_p is out of range: got 2"),
        ("p.yaml", "top_p: .nan", "top_p is out of range"),
        ("p.yaml", "top_k: 9" + "9" * 60, "top_k is out of range"),
        ("p.yaml", "ignore_eos: 1", "ignore_eos is out of range: got 1; allowed: True or False"),
        ("p.yaml", "seed: 1\nseed: 2", "a key is given twice: got 'seed'"),
        ("p.yaml", "- 1", "are not named values"),
        ("p.yaml", "just words", "are not named values"),
        ("p.yaml", "{", "this is not YAML"),
        ("p.yaml", "seed: 1\n---\nseed: 2", "this is not YAML"),
        ("p.yaml", "stop: !!python/object/apply:os.system [ls]", "a tag of this YAML has no meaning"),
        ("p.yaml", "? [1]\n: 2", "a key of this YAML is no text"),
        ("p.yaml", LAUGHS, "unknown sampling setting|too many or too deep"),
        ("p.yaml", "stop: " + "[" * 60 + "]" * 60, "too many or too deep"),
        ("p.yaml", "stop: " + "[" * 20_000, "this YAML is nested too deeply"),
        ("p.yaml", 'stop: "\\UFFFFFFFF"', "this YAML cannot be read"),
        ("p.yaml", "a: &a [*a]", None),
        ("p.json", "{", "this is not JSON"),
        ("p.json", '{"top_p": NaN}', "this is not JSON"),
        ("p.json", '{"seed": 1, "seed": 2}', "a key is given twice"),
        ("p.json", '{"seed": %s}' % ("9" * 5000), "this is not JSON"),
        ("p.json", "[" * 100_000, "this is not JSON"),
        ("p.json", '{"stop": ["\\ud800"]}', "stop is out of range"),
        ("p.json", " ", "is empty"),
        ("p.txt", "seed: 1", "not a file of sampling settings"),
        ("p.yaml", "stop: '" + "x" * MAX_BYTES + "'", "cannot be read"),
    ],
)
def test_a_wrong_file_gives_one_clear_error(tmp_path: Path, name: str, text: str, message: str | None) -> None:
    with pytest.raises(InvalidOption, match=message) as caught:
        read_params_file(write(tmp_path, text, name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_give_one_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path / "a\0b.yaml"):
        with pytest.raises(InvalidOption, match="cannot be read"):
            read_params_file(path)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InvalidOption, match="no regular file"):
        read_params_file(tmp_path / "folder.yaml")


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=60) | st.text("abc:{}[]&*!-\n '\"0129.,~#?|>%@\t", max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("p.yaml", "p.json"):
        file = tmp_path_factory.mktemp("any") / name
        file.write_bytes(content)
        message = ""
        try:
            assert isinstance(read_params_file(file), dict)
        except HastenError as error:
            message = str(error)
        assert message == "" or message.isprintable()
