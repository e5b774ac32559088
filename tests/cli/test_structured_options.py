"""The options of an output's form, in ``hasten generate`` and ``hasten chat`` on the shipped model."""

import json
import re

import pytest

from hasten import LLM, SamplingParams
from hasten.cli.structured_options import read_structured, structured_flags
from hasten.core.errors import HastenError
from hasten.core.structured_outputs import MAX_SOURCE, StructuredOutputs

PROMPT = "def binary_search("
SCHEMA = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
OPTIONS = ("--seed", "3", "--dtype", "float32", "--kv-cache-memory", "64MiB", "--temperature", "1")
GENERATE = ("generate", "demo", PROMPT, *OPTIONS)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", dtype="float32", max_model_len=512)


def test_options_give_the_fields_of_structured_outputs(tmp_path):
    (tmp_path / "schema.json").write_text(SCHEMA)
    (tmp_path / "grammar.lark").write_text('start: "a"')
    forms = [
        ({"json_schema": SCHEMA}, {"json": SCHEMA}),
        ({"json_schema": f" \n{SCHEMA}"}, {"json": f" \n{SCHEMA}"}),
        ({"json_schema": "true"}, {"json": "true"}),
        ({"json_schema": str(tmp_path / "schema.json")}, {"json": SCHEMA}),
        ({"json_object": True}, {"json_object": True}),
        ({"json_object": True, "compact_json": True}, {"json_object": True, "disable_any_whitespace": True}),
        ({"regex": "[ab]"}, {"regex": "[ab]"}),
        ({"choice": ("a", "b")}, {"choice": ("a", "b")}),
        ({"grammar": str(tmp_path / "grammar.lark")}, {"grammar": 'start: "a"'}),
    ]
    for options, fields in forms:
        assert read_structured(options) == {"structured_outputs": StructuredOutputs(**fields)}
    for options in ({}, {"json_object": False}, {"compact_json": False}):
        assert read_structured(options) == {}
        assert structured_flags(options) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choice": ("b",)}, "--regex, --choice"),
        ({"json_schema": "{}", "json_object": True}, "--json-schema, --json-object"),
        ({"regex": "a", "compact_json": True}, "--compact-json needs JSON"),
        ({"compact_json": True}, "--compact-json needs JSON"),
        ({"json_schema": "missing.json"}, "the file of --json-schema cannot be read"),
        ({"json_schema": ""}, "the file of --json-schema cannot be read"),
        ({"json_schema": "[1]"}, "the file of --json-schema cannot be read"),
        ({"json_schema": "{"}, "json="),
        ({"json_schema": "a\0"}, "the file of --json-schema cannot be read"),
        ({"grammar": "/"}, "the file of --grammar cannot be read"),
        ({"regex": ""}, "regex="),
        ({"choice": ("",)}, "choice="),
    ],
)
def test_what_is_no_form_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HastenError, match=re.escape(message)):
        read_structured(options)


def test_a_file_that_is_too_long_or_no_text_is_refused(tmp_path):
    (tmp_path / "long").write_text("x" * (MAX_SOURCE + 5))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    for name in ("long", "bytes"):
        with pytest.raises(HastenError):
            read_structured({"grammar": str(tmp_path / name)})


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (("--json-schema", SCHEMA), {"json": SCHEMA}),
        (("--json-schema", SCHEMA, "--compact-json"), {"json": SCHEMA, "disable_any_whitespace": True}),
        (("--regex", "[ab]{3}c"), {"regex": "[ab]{3}c"}),
        (("--choice", "yes", "--choice", "no"), {"choice": ("yes", "no")}),
    ],
    ids=lambda part: str(part)[:24],
)
def test_the_text_is_that_of_the_python_call(hasten, llm, options, fields):
    ran = hasten(*GENERATE, *options)
    params = llm.default_sampling_params().replace(seed=3, temperature=1.0, structured_outputs=StructuredOutputs(**fields))
    completion = llm.generate(PROMPT, params)[0].outputs[0]
    assert completion.is_complete
    assert (ran.code, ran.out) == (0, completion.text + "\n")
    assert "finish: stop\n" in ran.err
    assert "structured_outputs=StructuredOutputs(" in ran.err


def test_an_output_that_was_cut_is_marked(hasten):
    cut = (*GENERATE, "--regex", "[0-9]{30}", "--max-tokens", "2")
    assert hasten(*cut).err.endswith("finish: length | incomplete\n")
    ran = hasten(*cut, "--n", "2", "--json")
    assert ran.err.endswith("finish: length | 2 of 2 outputs incomplete\n")
    assert [output["is_complete"] for output in json.loads(ran.out)["outputs"]] == [False, False]
    several = hasten(*GENERATE, "x = ", "--choice", "a", "--choice", "b")
    assert "incomplete" not in several.err
    assert re.search(r"output 1\n[ab]\n--- prompt 2, output 1\n[ab]\n", several.out)
    assert hasten(*GENERATE, "--max-tokens", "2").err.endswith("finish: length\n")
    free = json.loads(hasten(*GENERATE, "--max-tokens", "2", "--json").out)
    assert free["outputs"][0]["is_complete"] is None


def test_a_grammar_from_a_file_and_its_error(hasten, tmp_path):
    file = tmp_path / "list.gbnf"
    file.write_text('root ::= "[" item ("," item)? "]"\nitem ::= [0-9]\n')
    assert re.fullmatch(r"\[\d(,\d)?\]\n", hasten(*GENERATE, "--grammar", str(file)).out)
    file.write_text("root ::= (")
    ran = hasten(*GENERATE, "--grammar", str(file))
    assert (ran.code, ran.out) == (2, "")
    assert "the grammar of structured_outputs cannot be used" in ran.err


def test_a_form_and_sections_exclude_each_other(hasten):
    ran = hasten(*GENERATE, "--sections", "--json-object")
    assert ran.code == 2
    assert "--json-object" in ran.err


def test_a_long_schema_is_cut_in_the_settings(hasten):
    schema = json.dumps({"enum": [f"value {i}" for i in range(400)]})
    ran = hasten(*GENERATE, "--json-schema", schema)
    assert re.fullmatch(r'"value \d+"\n', ran.out)
    assert max(map(len, ran.err.splitlines())) < 700


def test_answers_of_a_chat_have_the_form(hasten, llm):
    ran = hasten("chat", "demo", *OPTIONS, "--choice", "yes", "--choice", "no", stdin="Is it so?\n")
    messages = [{"role": "user", "content": "Is it so?"}]
    params = SamplingParams(seed=3, temperature=1.0, top_p=0.9, structured_outputs=StructuredOutputs(choice=("yes", "no")))
    assert ran.out == llm.chat(messages, params)[0].outputs[0].text + "\n"
    assert ran.out in ("yes\n", "no\n")
    assert hasten("chat", "demo", *OPTIONS, "--choice", "a", "--regex", "b").code == 2
