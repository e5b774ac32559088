"""``literal_text``: text that a Jinja template writes as it is."""

from __future__ import annotations

import re

# A brace that would open a tag, also with what follows the text or replaces "\r"; and a line break that Jinja writes as "\n".
_SPECIAL = re.compile(r"\{(?=[{%#\r]|\Z)|\r")


def literal_text(text: str) -> str:
    """Return the source of a template that writes ``text``.

    Another part has to follow it: Jinja drops a line break at the end of a template.
    """
    return _SPECIAL.sub(lambda found: '{{ "\\r" }}' if found[0] == "\r" else '{{ "{" }}', text)
