"""``TemplateLibrary``: the prompt templates that a name can mean, the user's before the built-in ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import InvalidOption, nearest, show
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import SUFFIXES, read_templates

BUILT_IN = Path(__file__).parent / "built_in"
MAX_FILES = 1000  # per folder


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    template: PromptTemplate
    file: Path

    @property
    def source(self) -> str:
        """Where the template comes from, for a person."""
        return "built in" if self.file.parent == BUILT_IN else str(self.file)


class TemplateLibrary:
    """The templates of some folders or files, and the built-in ones.

    A template hides those of the same name in later folders, and built-in ones. Raises ``InvalidOption`` for a file that cannot be
    read, and for a folder in which a name is used twice.
    """

    def __init__(self, paths: Iterable[Path | str] = ()) -> None:
        found: dict[str, LibraryEntry] = {}
        for path in (*map(Path, paths), BUILT_IN):
            found = {**_read(path), **found}
        self.entries: Mapping[str, LibraryEntry] = dict(sorted(found.items()))

    def find(self, name: str) -> PromptTemplate:
        """Return the template of this name. Raises ``InvalidOption`` that offers the nearest one."""
        if name not in self.entries:
            raise InvalidOption("there is no such prompt template", got=show(name), remedy=nearest(name, self.entries))
        return self.entries[name].template


def _read(path: Path) -> dict[str, LibraryEntry]:
    entries: dict[str, LibraryEntry] = {}
    for file in _files(path):
        for template in read_templates(file):
            if template.name in entries:
                raise InvalidOption(
                    "two prompt templates have the same name",
                    got=f"{template.name} in {entries[template.name].file} and in {file}",
                    remedy="Rename one of them",
                )
            entries[template.name] = LibraryEntry(template, file)
    return entries


def _files(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except (OSError, ValueError) as error:
        raise InvalidOption(f"the templates in {path} cannot be read", got=getattr(error, "strerror", None) or error) from None
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidOption(
            f"the folder {path} has no templates" if not files else f"the folder {path} has too many templates",
            got=f"{len(files)} files that end in {', '.join(SUFFIXES)}",
            allowed=f"1 to {MAX_FILES:,}",
        )
    return files
