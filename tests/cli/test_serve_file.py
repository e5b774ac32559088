"""The options and models of a server from a YAML file: right, wrong and hostile ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.cli.engine_options import ENGINE
from hasten.cli.serve import GROUPS
from hasten.cli.serve_file import read_serve_file
from hasten.core.errors import InvalidOption


def write(folder: Path, text: str) -> Path:
    file = folder / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_values_are_those_of_the_command_line(tmp_path):
    text = """
        host: "::1"
        port: 0
        api_keys: [a, 'b']
        allowed-hosts: example.org
        keep_alive: 1e3
        max_requests: null
        prefix_caching: no
        kv_cache_memory: 4GiB
        models: {first-model: demo, "2": {path: ./b, max-num-seqs: 8, prefix_caching: true}}
    """
    file = read_serve_file(write(tmp_path, text), GROUPS, ENGINE)
    server = {"host": "::1", "port": 0, "api_keys": ("a", "b"), "allowed_hosts": ("example.org",), "keep_alive": 1000.0}
    assert file.values == [{}, server, {"prefix_caching": False, "kv_cache_memory": "4GiB"}]
    models = [(model.name, model.path, model.options) for model in file.models]
    assert models == [("first-model", "demo", {}), ("2", "./b", {"max_num_seqs": 8, "prefix_caching": True})]


def test_an_empty_file_sets_nothing(tmp_path):
    assert read_serve_file(write(tmp_path, "# nothing\n"), GROUPS, ENGINE).values == [{}, {}, {}]


@pytest.mark.parametrize(
    "text, parts",
    [
        ("pord: 1", ["unknown option", "'pord'", "Did you mean 'port'"]),
        ("quantize: int8", ["It was renamed to quantization"]),
        ("config: other.yaml", ["unknown option", "config"]),
        ("port: [1, 2]", ["port is no single value"]),
        ("port: {a: 1}", ["port is no single value"]),
        ("port: ''", ["port is no single value"]),
        ("port: http", ["port has the wrong form"]),
        ("port: 1\nport: 2", ["names something twice", "port"]),
        ("max_n: 1\nmax-n: 2", ["names something twice", "max_n"]),
        ("- port", ["has no named values"]),
        ("text", ["has no named values"]),
        ("? [a]\n: 1", ["a name is no single value"]),
        ("? null\n: 1", ["a name is no single value"]),
        ("port: !!python/object/apply:os.system [echo]", ["a tag of this YAML has no meaning"]),
        ("!!python/name:os.system {port: 1}", ["a tag of this YAML has no meaning"]),
        ("<<: {port: 1}", ["unknown option"]),
        ("models: demo", ["models has no named values"]),
        ("models: {a: null}", ["the path of a is no single value"]),
        ("models: {a: {}}", ["the model a has no path"]),
        ("models: {a: {path: b, port: 1}}", ["unknown option", "port"]),
        ("models: {a: {path: b, theads: 1}}", ["unknown option", "Did you mean 'threads'"]),
        ("models: {a: {path: [b]}}", ["the path of a is no single value"]),
        ("models: {a: b, a: c}", ["models names something twice"]),
        ("port: [1", ["this is not YAML"]),
        ("a: &a [*a]", ["unknown option"]),
        ("port: &a [*a]", ["port is no single value"]),
        ("host: &a [*a]", ["host is no single value"]),
        ("api_keys: &a [*a]", ["api_keys is no single value"]),
        ("models: &a {b: *a}", ["unknown option"]),
        ("[" * 5000, ["this YAML is nested too deeply"]),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(tmp_path, text, parts):
    file = write(tmp_path, text)
    with pytest.raises(InvalidOption) as caught:
        read_serve_file(file, GROUPS, ENGINE)
    message = str(caught.value)
    assert all(part in message for part in [f"in {file}", *parts]), message


def test_a_huge_file_is_not_read(tmp_path):
    file = write(tmp_path, "")
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InvalidOption, match="up to 1,048,576 bytes"):
        read_serve_file(file, GROUPS, ENGINE)


VALUES = st.recursive(
    st.sampled_from(["1", "null", "true", "text", "''", "*a", "&a 1", "!!int x", "!x y", "~", "1e999", "{", "0x1F", "2024-01-01"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(st.sampled_from(["path", "threads", "a", "null"]), inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["models", "model", "port", "api_keys", "threads", "keep_alive", "insecure", "host", "zzz"])


@given(pairs=st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_any_file_is_read_or_refused_in_one_sentence(tmp_path_factory, pairs):
    file = write(tmp_path_factory.getbasetemp(), "\n".join(f"{key}: {value}" for key, value in pairs))
    message = ""
    try:
        found = read_serve_file(file, GROUPS, ENGINE)
    except InvalidOption as error:
        message = str(error)
    assert (str(file) in message and "\n" not in message) if message else all(model.path for model in found.models)
