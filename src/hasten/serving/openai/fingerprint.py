"""``fingerprint``: ``system_fingerprint``, which changes when the same seed may give another output."""

from __future__ import annotations

import hashlib
from typing import Any

from hasten.core.version import __version__
from hasten.serving.models.served_model import ServedModel

_FACTS = ("model", "family", "vocab_size", "parameters", "weights", "file_bytes", "quantization", "kv_cache_dtype", "kernels")


def fingerprint(model: ServedModel) -> str:
    """Return the version of hasten, and a hash of what the model is and how it is computed.

    The weights are not read.
    """
    facts = model.llm.describe()
    return fingerprint_of(facts)


def fingerprint_of(facts: dict[str, Any]) -> str:
    content = repr([(name, facts.get(name)) for name in _FACTS])
    return f"hasten-{__version__}-{hashlib.blake2s(content.encode(), digest_size=4).hexdigest()}"
