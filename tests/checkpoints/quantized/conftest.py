from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model that is not quantised."""
    return tiny_checkpoint("llama-gqa", tmp_path_factory.mktemp("tiny"))
