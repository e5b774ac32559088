"""``BoundedFaults``: for schemas of bodies whose check ends at the first fault of a list or a mapping.

Pydantic collects all faults, which are a million where a client sends a million numbers, and lets no other thread run meanwhile.
"""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema


def _end_at_first_fault(node: Any) -> None:
    if isinstance(node, list | tuple):
        for each in node:
            _end_at_first_fault(each)
    elif isinstance(node, dict):
        if node.get("type") in ("list", "dict"):
            node["fail_fast"] = True
        for each in node.values():
            _end_at_first_fault(each)


class BoundedFaults:
    """Stands before ``BaseModel`` among the bases of a schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _end_at_first_fault(schema)
        return schema
