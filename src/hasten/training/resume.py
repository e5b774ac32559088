"""``ResumeFolder``: the training state on disk, so that a killed run continues from its last save.

::

    OUT/.resume/settings.json              the run's settings; a run with other settings is refused
                corpus.safetensors         the token streams
                step-00000120.safetensors  parameters and optimizer moments
                state.json                 names the file above and holds the rest of the state; written last, atomically
    OUT/.resume-done/                      the same folder while it is deleted after the result is written; never read

No file is a pickle. This module knows tensors and plain data, but neither the loop nor the task.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.write_tensors import write_tensors
from hasten.core.errors import CapacityError, CheckpointError, InvalidOption

_NAME, _DONE = ".resume", ".resume-done"
_STATE, _SETTINGS = "state.json", "settings.json"


@dataclass(frozen=True, slots=True)
class SavedState:
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResumeFolder:
    folder: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any]) -> ResumeFolder:
        """Return the folder in ``out``. Writes nothing, and removes the state of a finished run.

        Raises ``InvalidOption`` if ``out`` holds a run with other settings (and names those) or anything else.
        """
        resume = cls(out / _NAME, settings)
        shutil.rmtree(out / _DONE, ignore_errors=True)
        file = resume.folder / _SETTINGS
        if file.is_file():
            _check_settings(_read_json(file), json.loads(json.dumps(settings)), out)
        elif out.is_file() or (out.is_dir() and any(entry.name != _NAME for entry in out.iterdir())):
            raise InvalidOption(
                "the output path is not an empty folder", got=str(out), remedy="Give a new folder with --out, or empty this one"
            )
        return resume

    def save(self, step: int, state: SavedState) -> None:
        """Replace the saved state. Raises ``CapacityError``.

        If the process dies, either this state or the last one is complete.
        """
        tensors = self.write(f"step-{step:08}", state.tensors)
        with _atomic_write(self.folder / _STATE) as partial:
            partial.write_bytes(json.dumps({"tensors": tensors.name, **state.values}).encode())
        for old in self.folder.glob("step-*.safetensors"):
            if old != tensors:
                old.unlink()

    def load(self) -> SavedState | None:
        """Return the last saved state. Raises ``CheckpointError`` for damaged files."""
        if not (self.folder / _STATE).is_file():
            return None
        values = _read_json(self.folder / _STATE)
        tensors = self.read(Path(str(values.pop("tensors", ""))).stem)
        if tensors is None:
            raise damaged_state(self.folder, "the file of the last step is missing")
        return SavedState(tensors, values)

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write tensors under ``name`` atomically and return the file. Raises ``CapacityError``."""
        self._write_settings()
        file = self.folder / f"{name}.safetensors"
        with _atomic_write(file) as partial:
            write_tensors({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, partial)
        return file

    def read(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors written under ``name``, or None. Raises ``CheckpointError`` for a damaged file."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise damaged_state(self.folder, f"{file.name}: {error}") from None

    def delete(self, name: str) -> None:
        """Delete the tensors written under ``name``, if there are any."""
        (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names under which tensors were written and that begin with ``prefix``, sorted."""
        return sorted(file.stem for file in self.folder.glob(f"{prefix}*.safetensors"))

    def version(self) -> int | None:
        """Return a number that another save changes; None before the first one."""
        try:
            return (self.folder / _STATE).stat().st_mtime_ns
        except OSError:
            return None

    def remove(self) -> None:
        """Delete the folder."""
        # Renamed first: a partly deleted state would be resumed and would overwrite the result.
        done = self.folder.with_name(_DONE)
        self.folder.replace(done)
        shutil.rmtree(done, ignore_errors=True)

    def _write_settings(self) -> None:
        file = self.folder / _SETTINGS
        if file.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            out = self.folder.parent
            raise InvalidOption(f"{out} cannot be written", got=error.strerror, remedy="Give another folder with --out") from None
        with _atomic_write(file) as partial:
            partial.write_bytes(json.dumps(self.settings).encode())


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Raise ``CapacityError`` in place of an error of the file system, such as a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CapacityError(
            f"{folder} cannot be written",
            got=str(error),
            remedy="Free space there; the same command then continues from the last saved state",
        ) from None


@contextmanager
def _atomic_write(file: Path) -> Iterator[Path]:
    """Yield a path to write to, then flush it to the disk and rename it to ``file``.

    Raises ``CapacityError`` and then leaves no partial file.
    """
    partial = file.with_suffix(".partial")
    with write_errors(file.parent):
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(file)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)
            raise


def _check_settings(saved: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> None:
    names = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
    if names:
        differences = ", ".join(f"{name} was {saved.get(name)!r} and is {settings.get(name)!r}" for name in names)
        raise InvalidOption(
            f"{out} holds an unfinished run with other settings",
            got=differences,
            remedy=f"Repeat the first command to continue it, give another folder with --out, or remove {out / _NAME}",
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except CheckpointError as error:
        raise damaged_state(file.parent, f"{file.name}: {error.got}") from None


def damaged_state(folder: Path, fault: str) -> CheckpointError:
    """Return the error for a saved state that does not continue this run."""
    return CheckpointError(f"the saved state in {folder} is damaged", got=fault, remedy="Remove that folder to start again")
