"""``load_variant``: a variant from a template file, or from a built-in template."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hasten.core.errors import InvalidOption
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.metric import text_digest
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import SUFFIXES, read_templates
from hasten.quality.documents import read_text_file


@dataclass(frozen=True, slots=True)
class TemplateVariant:
    """A template under the name that the user gave. It reads the variables of an item that its text has."""

    name: str
    template: PromptTemplate

    @property
    def digest(self) -> str:
        """The SHA-256 of what the template writes, in hexadecimal."""
        template = self.template
        return text_digest(template.text, template.system or "", repr(sorted(template.defaults.items())))

    def render(self, variables: Mapping[str, str]) -> str:
        """Return the text for one item. Raises ``InvalidRequest``."""
        read = {*self.template.variables, *self.template.defaults}
        return self.template.render({name: value for name, value in variables.items() if name in read})


def load_variant(name: str) -> TemplateVariant:
    """Return the variant of a file, or of a built-in template.

    A file that is neither Jinja nor YAML by its suffix is the text of one template. Raises ``InvalidOption``.
    """
    file = Path(name)
    if not os.path.isfile(file) and os.sep not in name and not file.suffix:
        return TemplateVariant(name, TemplateLibrary().find(name))
    if file.suffix.lower() not in SUFFIXES:
        content = read_text_file(file).removesuffix("\n")
        return TemplateVariant(name, PromptTemplate(re.sub(r"\W", "_", file.name)[:80], content))
    templates = read_templates(file)
    if len(templates) != 1:
        got = f"{len(templates)} templates: {', '.join(template.name for template in templates[:8])}"
        raise InvalidOption(f"a variant is one template, and {file} has others", got=got, remedy="Give each one a file of its own")
    return TemplateVariant(name, templates[0])
