"""``AskTemplates``: how a teacher is asked, by the built-in templates or by those of the user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.errors import InvalidOption, nearest, show
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import read_templates

FOLDER = Path(__file__).parent / "templates"  # a file per command


@dataclass(frozen=True, slots=True)
class AskTemplates:
    templates: Mapping[str, PromptTemplate]

    def render(self, name: str, variables: Mapping[str, Any]) -> str:
        """Return a prompt. A template need not read all of the variables. Raises ``InvalidRequest``."""
        template = self.templates[name]
        read = {*template.variables, *template.defaults}
        return template.render({name: value for name, value in variables.items() if name in read}).rstrip("\n")


def read_ask_templates(command: str, variables: Mapping[str, Mapping[str, Any]], file: Path | None = None) -> AskTemplates:
    """Return the templates of a command; those of ``file`` replace built-in ones of the same names.

    ``variables``: values for a trial of each template, whose names it may read. Raises ``HastenError`` if a template of the file
    has no use, reads another variable or fails.
    """
    found = {template.name: template for template in read_templates(FOLDER / f"{command}.yaml")}
    for template in read_templates(file) if file is not None else ():
        if template.name not in found:
            got, remedy = show(template.name), nearest(template.name, found)
            raise InvalidOption(f"in {file}: no template of this name is used", got=got, remedy=remedy)
        found[template.name] = template
    templates = AskTemplates(found)
    for name in found:
        templates.render(name, variables[name])
    return templates
