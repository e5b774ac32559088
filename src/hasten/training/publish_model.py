"""``publish_model``: put a trained checkpoint into its folder.

No reader takes the folder for a model before it is complete.

::

    OUT/.resume/result/     the checkpoint while its files are written
    OUT/                    then file by file; config.json, without which there is no model, comes last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten.training.resume import ResumeFolder, write_errors

REPORT = "training.json"
_CONFIG = "config.json"


def publish_model(resume: ResumeFolder, write: Callable[[Path], None], report: Mapping[str, Any]) -> None:
    """Let ``write`` fill a folder, add ``report`` and move the files beside the resume folder.

    The resume folder is removed at the end.

    A killed call leaves the resume folder, so the next run repeats it. Raises ``CapacityError``, and what ``write`` raises.
    """
    out, result = resume.folder.parent, resume.folder / "result"
    with write_errors(out):
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir(parents=True)
        write(result)
        (result / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        files = sorted((file for file in result.rglob("*") if file.is_file()), key=lambda file: (file.name == _CONFIG, str(file)))
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        for file in files:
            target = out / file.relative_to(result)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
    resume.remove()
