"""``hasten generate`` and ``chat`` on GGUF files: with a tokenizer, without one, and on a folder that holds only such files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter
from tests.gguf_files import write_gguf
from tests.text.gguf_vocabularies import add_letters
from tests.tiny_models import tiny_checkpoint

from hasten import LLM, SamplingParams

SMALL = ("--max-model-len", "64", "--kv-cache-memory", "1MiB")
GREEDY = ("--temperature", "0", "--max-tokens", "6", "--ignore-eos", *SMALL)
PROMPT = "ab cd"
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def file(source: Path, tmp_path: Path) -> Path:
    def edit(writer: GGUFWriter) -> None:
        add_letters(writer)
        writer.add_chat_template(TEMPLATE)

    write_gguf(tmp_path / "model.gguf", source, "Q4_0", edit=edit)
    return tmp_path / "model.gguf"


@pytest.fixture
def mute(source: Path, tmp_path: Path) -> Path:
    """Return a file without a tokenizer."""
    write_gguf(tmp_path / "mute.gguf", source, "Q8_0", edit=lambda writer: writer.add_tokenizer_model("no_vocab"))
    return tmp_path / "mute.gguf"


def test_a_text_is_completed_with_the_tokenizer_of_the_file(hasten, file):
    ran = hasten("generate", str(file), PROMPT, *GREEDY, "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["prompt_token_ids"] == [98, 3, 70, 71]  # ab, the space, c, d
    llm = LLM(str(file), max_model_len=64, kv_cache_memory="1MiB")
    expected = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)[0]
    assert answer["outputs"][0]["token_ids"] == list(expected.outputs[0].token_ids)
    assert answer["outputs"][0]["text"] == expected.outputs[0].text != ""
    plain = hasten("generate", "--model", str(file), PROMPT, *GREEDY)
    assert plain.out == expected.outputs[0].text + "\n"


def test_a_conversation_uses_the_template_of_the_file(hasten, file):
    ran = hasten("chat", str(file), "--temperature", "0", "--max-tokens", "6", *SMALL, stdin="ab\n")
    assert ran.code == 0, ran.err
    llm = LLM(str(file), max_model_len=64, kv_cache_memory="1MiB")
    params = SamplingParams(temperature=0, max_tokens=6)
    expected = llm.chat([{"role": "user", "content": "ab"}], params, use_tqdm=False)[0].outputs[0].text
    assert expected.strip() and expected.strip() in ran.out


def test_a_file_without_a_tokenizer_takes_token_ids(hasten, mute):
    ran = hasten("generate", str(mute), "--prompt-ids", "5,9,80", *GREEDY, "--json")
    assert ran.code == 0, ran.err
    assert len(json.loads(ran.out)["outputs"][0]["token_ids"]) == 6
    refused = hasten("generate", str(mute), PROMPT, *GREEDY)
    assert refused.code == 2
    assert "has no tokenizer" in refused.err and "Traceback" not in refused.err


def test_a_folder_of_gguf_files_names_them(hasten, file, mute):
    ran = hasten("generate", str(file.parent), PROMPT, *GREEDY)
    assert (ran.code, ran.out) == (2, "")
    assert f"{file.parent} holds GGUF files, and each is a model of its own: got model.gguf, mute.gguf. " in ran.err
    assert f"Give the file: {file}." in ran.err


def test_a_file_of_another_kind_is_refused_in_one_sentence(hasten, file):
    file.write_bytes(b"GGUF" + b"\3\0\0\0" + b"\xff" * 40)
    ran = hasten("generate", str(file), PROMPT, *GREEDY)
    assert ran.code == 2
    assert f"{file} cannot be read as GGUF" in ran.err and len(ran.err.strip().splitlines()) == 1
