"""``WorkFolder``: where a compressed checkpoint grows until it is complete.

::

    OUT.partial/.resume/    finished parts, and the state from which a killed run continues (``ResumeFolder``)
    OUT.partial/result/     the checkpoint while its files are put together
    OUT/                    the same folder, renamed when it is complete
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.core.errors import CapacityError, InvalidOption
from hasten.ops.cpu.memory import format_bytes
from hasten.training.resume import ResumeFolder, write_errors


@dataclass(frozen=True, slots=True)
class WorkFolder:
    out: Path
    resume: ResumeFolder

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any], *, resume: bool) -> WorkFolder:
        """Return the work folder of ``out``. Writes nothing.

        Raises ``InvalidOption`` if ``out`` exists, if its parent is no folder, and for an unfinished run that has other settings or
        is not to be resumed.
        """
        refuse_existing(out)
        folder = partial_folder(out)
        work = cls(out, ResumeFolder.open(folder, settings))
        if work.resume.folder.is_dir() and not resume:
            raise InvalidOption(
                f"{folder} holds an unfinished run", remedy=f"Add --resume to continue it, or remove {folder} to start again"
            )
        return work

    @property
    def result(self) -> Path:
        """The folder of the checkpoint's files before it gets its name."""
        return partial_folder(self.out) / "result"

    def check_space(self, needed: int) -> None:
        """Raise ``CapacityError`` if the disk has less than ``needed`` free bytes."""
        parent = next(folder for folder in self.out.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(parent).free
        if needed > free:
            raise CapacityError(
                f"the disk of {parent} is too full for the new checkpoint and its parts",
                got=f"{format_bytes(free)} free",
                allowed=f"at least {format_bytes(needed)}",
                remedy="Free space, or give a folder on another disk with --out",
            )

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.file(name).is_file()

    def file(self, name: str) -> Path:
        return self.resume.folder / f"{name}.safetensors"

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a part atomically. Raises ``CapacityError``."""
        self.resume.write(name, tensors)

    def files(self, names: Sequence[str]) -> list[Path]:
        return [self.file(name) for name in names]

    def new_result(self) -> Path:
        """Return the result's folder, empty."""
        shutil.rmtree(self.result, ignore_errors=True)
        with write_errors(self.result.parent):
            self.result.mkdir(parents=True)
        return self.result

    def publish(self) -> None:
        """Give the result its name, and remove what was left of the run. Raises ``CapacityError``."""
        refuse_existing(self.out)
        with write_errors(self.out.parent):
            if self.out.is_dir():
                self.out.rmdir()  # it is empty
            self.result.replace(self.out)
            _sync_folder(self.out.parent)
        shutil.rmtree(partial_folder(self.out), ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Return the folder in which ``out`` grows, beside it so that renaming is atomic."""
    return out.with_name(f"{out.name}.partial")


def refuse_existing(out: Path) -> None:
    """Raise ``InvalidOption`` unless ``out`` is a new path or an empty folder."""
    if not out.name:
        raise InvalidOption("the output path has no name", got=str(out), remedy="Give a new folder with --out")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidOption(
            "the output path is not an empty folder", got=str(out), remedy="Give a new folder with --out, or empty this one"
        )


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
