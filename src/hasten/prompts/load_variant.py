"""``load_variant``: a variant from a file of Jinja text. Its variables are those of the task's items."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from hasten.core.errors import CheckpointError, InvalidOption, InvalidRequest
from hasten.prompts.base import Variant
from hasten.prompts.metric import text_digest
from hasten.quality.documents import read_text_file
from hasten.text.template_process import TemplateProcess

MAX_LENGTH = 1 << 20  # characters of a template


def load_variant(name: str) -> Variant:
    """Return the variant of a file. Raises ``HastenError``."""
    return FileTemplate(name)


def variant_digest(name: str) -> str:
    """Return the SHA-256 of the variant's text in hexadecimal."""
    return text_digest(read_text_file(Path(name)))


class FileTemplate:
    """Jinja text, rendered in the sandbox and within the limits of chat templates.

    A line break at its end does not count.
    """

    def __init__(self, file: str) -> None:
        self.name = file
        self._source = read_text_file(Path(file)).removesuffix("\n")
        if len(self._source) > MAX_LENGTH:
            got, allowed = f"{len(self._source):,} characters", f"up to {MAX_LENGTH:,}"
            raise InvalidOption(f"the template {file} is too long", got=got, allowed=allowed)
        try:
            self._names = _process().variable_names(self._source)
        except CheckpointError as error:
            raise InvalidOption(f"the template {file} cannot be read", got=error.got, remedy="Correct it") from None

    def render(self, variables: Mapping[str, str]) -> str:
        """Return the text for one item. Raises ``InvalidRequest``."""
        missing = sorted(self._names - variables.keys())
        if missing:
            raise InvalidRequest(
                f"the template {self.name} has variables that the item lacks",
                got=", ".join(missing),
                allowed=", ".join(sorted(variables)),
            )
        try:
            length = len(self._source) + sum(map(len, variables.values()))
            return _process().render(self._source, dict(variables), length)
        except InvalidRequest as error:
            raise InvalidRequest(f"the template {self.name} cannot be rendered", got=error.got, allowed=error.allowed) from None


@functools.cache
def _process() -> TemplateProcess:
    """Return the process that renders all variants. It starts at the first one."""
    return TemplateProcess()
