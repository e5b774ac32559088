"""Tokenizers, templates and licences go along; weights, code and cards do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.text_models import text_checkpoint
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from hasten.checkpoints.side_files import copy_side_files
from hasten.core.errors import CheckpointError

COPIED = [
    "LICENSE",
    "NOTICE.txt",
    "added_tokens.json",
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
]
LEFT = [
    "README.md",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "modeling_x.py",
    "optimizer.pt",
    "pytorch_model.bin",
    "quantize_config.json",
    "training.json",
    "additional_chat_templates/run.py",
]


def test_which_files_are_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "a folder.model").mkdir()
    target.mkdir()
    for name in COPIED + LEFT:
        (source / name).write_text(f"content of {name}")
    assert sorted(copy_side_files(source, target)) == COPIED
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()) == COPIED
    assert all((target / name).read_text() == f"content of {name}" for name in COPIED)


def test_links_of_a_cache_become_files(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "source" / "tokenizer.json").symlink_to("../blob")
    copy_side_files(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target" / "tokenizer.json").is_symlink()
    assert (tmp_path / "target" / "tokenizer.json").read_text() == "{}"


def test_transformers_reads_the_copied_tokenizer(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    source = text_checkpoint(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), tmp_path)
    (tmp_path / "target").mkdir()
    copy_side_files(source, tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    assert tokenizer("a")["input_ids"] == [3] and tokenizer.eos_token == "</s>"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_dangling_link, make_link_to_device])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    make(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a readable file"):
        copy_side_files(tmp_path, tmp_path / "target")
    with pytest.raises(CheckpointError, match="cannot be read"):
        copy_side_files(tmp_path / "none", tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []
