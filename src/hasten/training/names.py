"""Names that the options of a training choose from. This module imports no torch."""

from __future__ import annotations

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
