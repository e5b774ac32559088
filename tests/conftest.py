"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint of ``tests.tiny_models.TINY``, made once per session. Do not write into it."""
    folder = tmp_path_factory.mktemp("tiny")

    def checkpoint(name: str) -> Path:
        from tests.tiny_models import tiny_checkpoint  # transformers is heavy, and few tests need it

        return tiny_checkpoint(name, folder)

    return checkpoint
