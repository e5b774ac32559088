"""``OptimizationFolder``: the files of one optimisation, from which a killed run goes on.

::

    OUT/settings.json   what the result depends on; an optimisation with other settings is refused
        prompt.yaml     the best prompt
        soft_prompt/    the embeddings that stand before it, if any, in PEFT's format
        chosen.json     written before the held-out items are read; from then on the choice stands
        report.json     written last
        state/          kept results and files of the method; removed after the report

Each file appears complete or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.checkpoints.json_values import is_integer, read_json
from hasten.checkpoints.new_file import new_file
from hasten.core.errors import CheckpointError, HastenError, InvalidOption, show
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.optimization_report import OptimizationReport, read_report, report_json
from hasten.prompts.optimizer import Candidate
from hasten.prompts.template_file import read_templates, template_yaml

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

PROMPT, SOFT_PROMPT = "prompt.yaml", "soft_prompt"
_SETTINGS, _CHOSEN, _REPORT, _STATE = "settings.json", "chosen.json", "report.json", "state"
_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_OTHER_FOLDER = "Give another folder with --out"
_NEW_FOLDER = "Give a new folder with --out, or remove this one"


@dataclass(frozen=True, slots=True)
class Choice:
    """The best prompt by the validation items."""

    candidate: Candidate
    num_tokens: int  # that the method computed
    run_id: str  # of this optimisation in the ledger of held-out items


@dataclass(frozen=True, slots=True)
class OptimizationFolder:
    path: Path

    @property
    def state(self) -> Path:
        """The folder for kept results and files of the method."""
        return self.path / _STATE

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or check that it holds an optimisation with these settings.

        Settings that are not given are not compared. Raises ``InvalidOption`` if it holds something else or cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            is_empty = not any(map(_counts, os.listdir(self.path)))
        except FileExistsError:
            raise InvalidOption("the output path is no folder", got=self.path, remedy=_OTHER_FOLDER) from None
        except (OSError, ValueError) as error:  # ValueError: no name of a folder
            got = getattr(error, "strerror", None) or error
            raise InvalidOption(f"the folder {self.path} cannot be made", got=got, remedy=_OTHER_FOLDER) from None
        if is_empty:
            return
        if not (self.path / _SETTINGS).is_file():
            raise InvalidOption("the output path is not an empty folder", got=self.path, remedy="Give a new folder with --out")
        saved, given = self._read(_SETTINGS), json.loads(json.dumps(settings))
        names = [name for name in given if name not in saved or saved[name] != given[name]]
        if names:
            raise InvalidOption(
                f"{self.path} holds an optimisation with other settings",
                got=", ".join(f"{name} was {show(saved.get(name))} and is {show(given[name])}" for name in names[:8]),
                remedy="Repeat the first command, give another folder with --out, or remove this one",
            )

    def open(self, settings: Mapping[str, Any]) -> None:
        """Prepare the folder and write all settings down, unless they are there. Raises ``HastenError``."""
        self.prepare(settings)
        if not (self.path / _SETTINGS).exists():
            self._write(_SETTINGS, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")

    def report(self) -> OptimizationReport | None:
        """Return the report of a finished optimisation, and remove what its last step may have left."""
        if not (self.path / _REPORT).exists():
            return None
        found = read_report(self.path / _REPORT)
        self._remove_state()
        return found

    def choose(self, candidate: Candidate, num_tokens: int) -> Choice:
        """Write down the choice, for good. Raises ``HastenError``."""
        choice = Choice(candidate, num_tokens, uuid.uuid4().hex)
        self._write(PROMPT, template_yaml(candidate.variant.template))
        if read_templates(self.path / PROMPT) != [candidate.variant.template]:
            raise HastenError("the prompt cannot be written as a template file", got=show(candidate.variant.template.text))
        soft = candidate.soft_prompt
        if soft is not None:
            self._copy_soft_prompt(Path(soft.folder))
        facts = {
            "variant": candidate.variant.name,
            "digest": candidate.variant.digest,
            "soft_prompt": None if soft is None else soft.digest,
            "num_tokens": num_tokens,
            "run_id": choice.run_id,
        }
        self._write(_CHOSEN, json.dumps(facts, ensure_ascii=False) + "\n")
        return choice

    def chosen(self, llm: LLM) -> Choice | None:
        """Return the choice that was written down. Raises ``HastenError`` if its files were changed."""
        if not (self.path / _CHOSEN).exists():
            return None
        facts = self._read(_CHOSEN)
        name, run_id, num_tokens, soft_digest = (facts.get(key) for key in ("variant", "run_id", "num_tokens", "soft_prompt"))
        is_run_id = isinstance(run_id, str) and _DIGEST.fullmatch(run_id)
        if not (isinstance(name, str) and is_run_id and is_integer(num_tokens, 0)):
            raise InvalidOption(f"{self.path / _CHOSEN} is damaged", got=show(facts), remedy=_NEW_FOLDER)
        templates = read_templates(self.path / PROMPT)
        variant = TemplateVariant(name, templates[0])
        soft = None if soft_digest is None else llm.load_soft_prompt(self.path / SOFT_PROMPT)
        if len(templates) != 1 or variant.digest != facts.get("digest") or (soft and soft.digest) != soft_digest:
            raise InvalidOption(f"the prompt in {self.path} was changed after it was chosen", remedy=_NEW_FOLDER)
        return Choice(Candidate(variant, soft), num_tokens, str(run_id))

    def finish(self, report: OptimizationReport) -> None:
        """Write the report and remove the state. Raises ``HastenError``."""
        self._write(_REPORT, report_json(report))
        self._remove_state()

    def _copy_soft_prompt(self, source: Path) -> None:
        target = self.path / SOFT_PROMPT
        try:
            shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before its choice stood
            target.mkdir()
            for file in sorted(source.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, target / file.name)
        except OSError as error:
            raise HastenError(f"{target} cannot be written", got=error.strerror, remedy="Free space there") from None

    def _remove_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)
        for name in os.listdir(self.path):
            if not _counts(name):
                (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        data = text.encode()
        with new_file(self.path / name, len(data)) as stream:
            stream.write(data)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.path / name)
        except CheckpointError as fault:
            raise InvalidOption(f"{self.path / name} is damaged", got=fault.got, remedy=_NEW_FOLDER) from None


def _counts(name: str) -> bool:
    """Whether an entry is more than a file that a killed process left half written."""
    return not (name.startswith(".") and name.endswith(".partial"))
