"""``with_leading_text``: a template whose texts begin with a found text, whatever Jinja means by it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace

from hasten.prompts.template import PromptTemplate

_STRIPS = re.compile(r"\s*\{[{%#]-")  # a tag that strips white space before it


def with_leading_text(
    template: PromptTemplate, variable: str, text: str, separator: str, item_variables: Collection[str] = ()
) -> PromptTemplate:
    """Return the template with ``text`` and a separator before all that it writes, after a system text.

    The text is the default of a new variable, so Jinja does not read it as a template. Underscores follow the name ``variable``
    where the template or the items have it. ``separator``: line breaks.
    """
    while variable in template.text or variable in item_variables:
        variable += "_"
    between = f"{{{{ {json.dumps(separator)} }}}}" if _STRIPS.match(template.text) else separator
    return replace(template, text=f"{{{{ {variable} }}}}{between}{template.text}", defaults={**template.defaults, variable: text})
