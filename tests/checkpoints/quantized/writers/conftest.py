from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_models import TINY, TinyModel, tiny_checkpoint

# Sizes that blocks of 128 divide, and groups of 128.
WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_key_value_heads": 2}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name in ``TINY``, or "wide", to the folder of that random checkpoint."""
    folder = tmp_path_factory.mktemp("sources")

    def checkpoint(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TINY, "wide", TinyModel("Llama", WIDE))
            return tiny_checkpoint(name, folder)

    return checkpoint
