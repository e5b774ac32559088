"""``LoadedDigest``: the digest of the files of a loaded model, computed when it is first needed."""

from __future__ import annotations

import os
import threading

from hasten.checkpoints.model_digest import ModelDigest, model_digest, weight_files
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.entrypoints.progress import transfer_bar

FileState = tuple[str, int, int, int]  # path, inode, size, time of change


class LoadedDigest:
    def __init__(self, checkpoint: Checkpoint, model: str, *, visible: bool) -> None:
        """Make it before the weights are read. ``visible``: show a progress bar on terminals."""
        self._checkpoint, self._model, self._visible = checkpoint, model, visible
        self._states = self._file_states()
        self._mutex = threading.Lock()
        self._digest: ModelDigest | None = None

    def get(self) -> ModelDigest:
        """Return the digest. Raises ``CheckpointError`` if the files are not those that were loaded."""
        with self._mutex:
            if self._digest is None:
                with transfer_bar(f"hashing {self._model}", "B", visible=self._visible) as progress:
                    total = sum(size for _, _, size, _ in self._states)
                    digest = model_digest(self._checkpoint, lambda num_bytes: progress(num_bytes, total))
                if self._file_states() != self._states:
                    raise CheckpointError(
                        f"the files of {self._model} have changed since it was loaded", remedy="Load the model again"
                    )
                self._digest = digest
            return self._digest

    def _file_states(self) -> list[FileState]:
        try:
            states = [(str(file), os.stat(file)) for file in weight_files(self._checkpoint)]
        except OSError as error:
            raise CheckpointError(f"{self._model} cannot be read", got=error.strerror, remedy="Check its files") from None
        return [(file, state.st_ino, state.st_size, state.st_mtime_ns) for file, state in states]
