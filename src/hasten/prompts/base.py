"""``Variant``: one way to ask, which evaluation, tournaments and optimisers compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Variant(Protocol):
    """A named prompt with variables; a ``PromptTemplate`` is one."""

    @property
    def name(self) -> str: ...

    def render(self, variables: Mapping[str, str]) -> str:
        """Return the text for one item. Raises ``InvalidRequest`` that names missing variables."""
        ...
