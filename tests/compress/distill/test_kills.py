"""A distillation that is killed by SIGKILL at random moments ends as one that is not, and no half of it can be loaded."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
from pathlib import Path

import pytest
from tests.compress.distill import killed_distillation
from tests.exhaustive import repeats

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import HastenError


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


def is_loadable(folder: Path) -> bool:
    """Whether every tensor of a checkpoint can be read."""
    try:
        checkpoint = Checkpoint.open(folder)
        return all(checkpoint.read(name).isfinite().all() for name in checkpoint.tensors)
    except HastenError:
        return False


def test_a_killed_distillation_goes_on(teacher, text_a, text_b, tmp_path):
    context = multiprocessing.get_context("forkserver")  # the libraries are imported once, and every run is a process of its own
    context.set_forkserver_preload([killed_distillation.__name__])
    counter = tmp_path / "count"

    def start(out: Path, last: int) -> int:
        process = context.Process(target=killed_distillation.run, args=(teacher, text_b, text_a, out, last, counter))
        process.start()
        process.join(timeout=300)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode

    assert start(tmp_path / "expected", 0) == 0
    expected = files(tmp_path / "expected")
    names = {"config.json", "model.safetensors", "training.json", "curves.json", "README.md", "tokenizer.json"}
    assert names <= expected.keys() and len(json.loads(expected["training.json"])["evaluations"]) == 6
    num_moments, generator, num_killed = int(counter.read_text()), random.Random(3), 0
    assert num_moments > 60
    while num_killed < repeats("distillation kills"):
        folder = tmp_path / f"run{num_killed}"
        folder.mkdir()
        out, code = folder / "expected", -signal.SIGKILL  # the card has the folder's name
        while code and not out.exists() and num_killed < repeats("distillation kills"):
            code = start(out, generator.randint(1, num_moments))
            num_killed += code != 0
            assert not out.exists() or files(out) == expected, "the result appears when it is complete"
            partial = folder / "expected.partial" / "result"
            half = partial.is_dir() and is_loadable(partial)
            assert not half or (partial / "model.safetensors").read_bytes() == expected["model.safetensors"]
        if code and not out.exists():
            assert start(out, 0) == 0
        assert files(out) == expected


def test_a_half_written_file_would_be_seen(tmp_path, teacher):
    """Negative control: the check of the files in progress recognises a checkpoint that is cut off."""
    assert is_loadable(teacher)
    for name in ("config.json", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            content = (teacher / file).read_bytes()
            (folder / file).write_bytes(content[: len(content) // 2] if file == name else content)
        assert not is_loadable(folder)


@pytest.mark.parametrize("moment", [1, 5])
def test_a_moment_kills(teacher, text_a, text_b, tmp_path, moment):
    """Negative control: the process dies where it should, before the result."""
    process = multiprocessing.get_context("forkserver").Process(
        target=killed_distillation.run, args=(teacher, text_b, text_a, tmp_path / "out", moment, tmp_path / "count")
    )
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "count").exists() and not (tmp_path / "out").exists()
