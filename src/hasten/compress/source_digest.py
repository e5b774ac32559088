"""``source_digest``: what tells the model that a run began with from a changed one."""

from __future__ import annotations

import hashlib
import json

from hasten.checkpoints.reader import Checkpoint


def source_digest(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of the configuration, the tensors' shapes, and the sizes and times of their files."""
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name, entry in sorted(checkpoint.tensors.items()):
        stat = entry.file.stat()
        digest.update(f"{name} {entry.dtype} {entry.shape} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
