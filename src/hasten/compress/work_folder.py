"""``WorkFolder``: where a compressed checkpoint grows until it is complete.

::

    OUT.partial/.resume/    finished parts, and the state from which a killed run continues (``ResumeFolder``)
    OUT.partial/result/     the checkpoint while its files are put together
    OUT/                    the same folder, renamed when it is complete (``publish``)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten.compress.new_folder import check_space, flush, new_target, partial_folder, publish, writing_error
from hasten.core.errors import InvalidOption
from hasten.training.resume import ResumeFolder, write_errors


@dataclass(frozen=True, slots=True)
class WorkFolder:
    out: Path  # without links
    resume: ResumeFolder

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any], *, resume: bool) -> WorkFolder:
        """Return the work folder of ``out``. Writes nothing.

        Raises ``InvalidOption`` if ``out`` exists and is not an empty folder, if it cannot be made, and for an unfinished run that
        has other settings or is not to be resumed.
        """
        target = new_target(out)
        folder = partial_folder(target)
        try:
            work = cls(target, ResumeFolder.open(folder, settings))
        except OSError as error:
            raise writing_error(out, error) from None
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
        """Raise ``CapacityError`` if the disk has less than ``needed`` free bytes.

        What a run to resume has written already counts as free.
        """
        written = sum(file.stat().st_size for file in partial_folder(self.out).rglob("*.safetensors"))
        check_space(self.out, needed - written)

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
        """Give the result its name, and remove what was left of the run.

        Raises ``InvalidOption`` if the name is taken.
        """
        try:
            flush(self.result)
            publish(self.result, self.out)
        except OSError as error:
            raise writing_error(self.out, error) from None
        self.discard()

    def discard(self) -> None:
        """Remove what a run wrote before its result."""
        with suppress(OSError):  # a folder with a file of the user stays
            self.resume.remove()
            partial_folder(self.out).rmdir()
