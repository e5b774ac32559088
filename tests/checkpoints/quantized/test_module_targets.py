"""``TargetMatcher``: the library's rules for names, patterns and classes, in bounded time."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from compressed_tensors.utils.match import match_targets
from tests.compressed_checkpoints import MIXED, MIXED_NAMES, change_settings, open_error, write_linear_groups
from torch import nn

from hasten.checkpoints.quantized import module_targets
from hasten.checkpoints.quantized.module_targets import TargetMatcher
from hasten.core.errors import CheckpointError


def test_targets_are_matched_as_the_library_matches_them() -> None:
    rng = random.Random(5)
    pool = [
        "Linear",
        "re:.*a.*",
        "re:b",
        "re:.*[.]0[.].*",
        "re:^model",
        "re:.*",
        "x.0.a",
        "b.1.c",
        "model.a",
        "Embedding",
        "re:(a|b).*c$",
    ]
    names = ["x.0.a", "b.1.c", "model.a", "a", "c.0.c", "a.c", "zz"]
    for _ in range(300):
        targets = rng.sample(pool, rng.randrange(5))
        matcher = TargetMatcher(tuple(targets))
        for name in names:
            expected = match_targets(name, nn.Linear(1, 1), targets)
            assert matcher.find(name) == (expected[0] if expected else None), (name, targets)


def test_slow_and_broken_patterns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_targets, "MAX_SECONDS", 0.2)
    write_linear_groups(tmp_path, dict.fromkeys([*MIXED_NAMES, "layers." + "a" * 40 + "b"], (16, 64)), MIXED, "mixed-precision")
    faults = {"(layers.)(a|a)*$": "together take less than 0.2 s", "(": "of Python", "(?R)": "of Python"}
    faults["a" * 2000] = "1,000 characters"
    for pattern, fault in faults.items():
        change_settings(tmp_path, config_groups={**MIXED, "group_4": {**MIXED["group_2"], "targets": [f"re:{pattern}"]}})
        start = time.monotonic()
        assert fault in open_error(tmp_path)
        assert time.monotonic() - start < 10


def test_many_fast_patterns_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_targets, "MAX_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"together take less than 0\.5 s"):
        TargetMatcher([f"re:.*layers[.]{index}[.](q|k|v){{1,3}}x$" for index in range(20_000)])
    matcher = TargetMatcher([f"re:x{index}" for index in range(200)])
    names = (f"model.layers.{index}.self_attn.q_proj" for index in range(20_000))
    with pytest.raises(CheckpointError, match=r"together take less than 0\.5 s"):
        list(map(matcher.find, names))
    assert time.monotonic() - start < 5
