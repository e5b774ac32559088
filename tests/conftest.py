"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name in ``tests.tiny_models.TINY`` to the folder of that random checkpoint.

    A checkpoint is made once per session; tests must not write into its folder.
    """
    folder = tmp_path_factory.mktemp("tiny")

    def checkpoint(name: str) -> Path:
        from tests.tiny_models import tiny_checkpoint  # imports transformers, which few tests need

        return tiny_checkpoint(name, folder)

    return checkpoint
