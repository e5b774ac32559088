"""The version of hasten, which is also that of its results and files."""

from __future__ import annotations

__version__ = "0.1.0"
