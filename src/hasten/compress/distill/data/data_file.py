"""``DataFile``: a JSONL file that appears when it is complete, and what is beside it until then.

::

    FILE.partial   the teacher's answers (``AnswerFile``), from which the same command goes on after a kill
    FILE.new       the records while they are made of the answers
    FILE           the same file, renamed when it is complete; then the answers are removed
"""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.compress.distill.data.answer_file import AnswerFile, answer_path, check_settings
from hasten.core.errors import CapacityError, InvalidOption

_OTHER_PATH = "Give another path with --out"


@dataclass(frozen=True, slots=True)
class DataFile:
    path: Path

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ``InvalidOption`` if the file exists or cannot be made.

        The same if a run with other settings is unfinished.
        """
        try:
            # A killed run may have given the file its name, but not yet removed its answers.
            taken = [] if answer_path(self.path).exists() else [path for path in (self.path, self._new) if os.path.lexists(path)]
            folder = self.path.resolve().parent
            is_folder = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            raise InvalidOption(f"{self.path} cannot be written", got=error, remedy=_OTHER_PATH) from None
        if taken or not self.path.name:
            raise _exists(taken[0] if taken else self.path)
        if not is_folder:
            raise InvalidOption(f"{self.path} cannot be written", got=f"{folder} is no folder to write to", remedy=_OTHER_PATH)
        check_settings(answer_path(self.path), settings)

    def open(self, settings: Mapping[str, Any]) -> AnswerFile:
        """Return the answers of this run, and of a killed one with the same settings."""
        self.check(settings)
        return AnswerFile(answer_path(self.path), settings)

    def publish(self, records: Iterable[Mapping[str, Any]], answers: AnswerFile) -> int:
        """Write the records, remove the answers, and return the number of records.

        What ``records`` raises leaves the answers. Raises ``HastenError`` if there is no record or the disk is full.
        """
        new, count = self._new, 0
        try:
            with new.open("w", encoding="utf-8") as stream:
                for record in records:
                    stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                    count += 1
                stream.flush()
                os.fsync(stream.fileno())
            if not count:
                raise InvalidOption("no example was made", got="0 records", remedy="The counts say why; change the options")
            if os.path.lexists(self.path) and not filecmp.cmp(new, self.path, shallow=False):
                raise _exists(self.path)
            os.replace(new, self.path)
        except OSError as error:
            raise CapacityError(f"{self.path} cannot be written", got=error.strerror, remedy="Free space there") from None
        finally:
            new.unlink(missing_ok=True)
        answers.remove()
        return count


def _exists(path: Path) -> InvalidOption:
    return InvalidOption("the output file exists", got=path, remedy="Give a new path with --out, or remove the file")
