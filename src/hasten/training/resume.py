"""``ResumeFolder``: the state of a training on disk, so that a run that is killed at any moment goes on where it was.

::

    OUT/.resume/settings.json              what was asked for: another run may not go on with it
                corpus.safetensors         the tokens, as they were cut
                step-00000120.safetensors  weights and moments
                state.json                 names the file above and says the rest; replaced last, in one motion
    OUT/.resume-done/                      all of it, on its way out after the result was written; of no meaning

Nothing here is a pickle. It knows tensors and plain data, and neither the loop nor what is trained.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.core.errors import CapacityError, CheckpointError, InvalidOption

NAME, _DONE = ".resume", ".resume-done"
_STATE, _SETTINGS = "state.json", "settings.json"


@dataclass(frozen=True, slots=True)
class Saved:
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResumeFolder:
    folder: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any]) -> ResumeFolder:
        """The folder in ``out``. Nothing is written yet; what is left of a finished run's state is removed.

        Raises ``InvalidOption`` if it holds a run of other settings, names those, and if ``out`` holds anything else.
        """
        found = cls(out / NAME, settings)
        shutil.rmtree(out / _DONE, ignore_errors=True)
        file = found.folder / _SETTINGS
        if file.is_file():
            _check_settings(_read(file), json.loads(json.dumps(settings)), out)
            return found
        if out.is_file() or (out.is_dir() and any(entry.name != NAME for entry in out.iterdir())):
            raise InvalidOption(
                "the output folder holds something already", got=str(out), remedy="Give a new folder with --out, or empty this one"
            )
        return found

    def save(self, step: int, saved: Saved) -> None:
        """Atomic: whenever the process dies, this state or the one before it is there, whole. Raises like ``writing``."""
        tensors = self.write(f"step-{step:08}", saved.tensors)
        with _settled(self.folder / _STATE) as partial:
            partial.write_bytes(json.dumps({"tensors": tensors.name, **saved.values}).encode())
        for old in self.folder.glob("step-*.safetensors"):
            if old != tensors:
                old.unlink()

    def load(self) -> Saved | None:
        """What was saved last. Raises ``CheckpointError`` if the files were damaged since."""
        if not (self.folder / _STATE).is_file():
            return None
        values = _read(self.folder / _STATE)
        tensors = self.read(Path(str(values.pop("tensors"))).stem)
        if tensors is None:
            raise _damaged(self.folder, "the file of the last step is missing")
        return Saved(tensors, values)

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Some tensors under a name of their own, atomically. Raises like ``writing``."""
        self._begin()
        file = self.folder / f"{name}.safetensors"
        with _settled(file) as partial:
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, partial)
        return file

    def read(self, name: str) -> dict[str, Tensor] | None:
        """None if nothing was written under this name."""
        file = self.folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            return load_file(file)
        except SafetensorError as error:
            raise _damaged(self.folder, f"{file.name}: {error}") from None

    def _begin(self) -> None:
        file = self.folder / _SETTINGS
        if file.is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            out = self.folder.parent
            raise InvalidOption(f"{out} cannot be written", got=error.strerror, remedy="Give another folder with --out") from None
        with _settled(file) as partial:
            partial.write_bytes(json.dumps(self.settings).encode())

    def remove(self) -> None:
        """In one motion: a state of which a part is gone would be gone on with, and the result written over."""
        done = self.folder.with_name(_DONE)
        self.folder.replace(done)
        shutil.rmtree(done, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises ``CapacityError`` where ``folder`` takes no more, such as on a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CapacityError(
            f"{folder} cannot be written",
            got=str(error),
            remedy="Free space there; the same command then goes on from the last saved state",
        ) from None


def _check_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any], out: Path) -> None:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        differences = ", ".join(f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}" for name in names)
        raise InvalidOption(
            f"{out} holds an unfinished run of other settings",
            got=differences,
            remedy=f"Repeat the first command to go on with it, give another folder with --out, or remove {out / NAME}",
        )


@contextmanager
def _settled(file: Path) -> Iterator[Path]:
    """Where to write what is to be ``file``. It is on the disk before it gets its name, which must not outlive a power cut without
    its content. Raises like ``writing``, and leaves nothing on a disk that is full.
    """
    partial = file.with_suffix(".partial")
    with writing(file.parent):
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(file)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)
            raise


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file.parent, f"{file.name}: {error}") from None
    if not isinstance(values, dict):
        raise _damaged(file.parent, f"{file.name} is not an object")
    return values


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the saved state in {folder} is damaged", got=what, remedy="Remove that folder to begin anew")
