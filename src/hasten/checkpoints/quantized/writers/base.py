"""``FormatWriter``: how a format stores quantised matrices, and its part of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, QuantizedRows

LM_HEAD = "lm_head"  # the module of every family


class FormatWriter(Protocol):
    """One format.

    Each file of ``writers`` holds one as ``WRITER``; the file's name, with ``-`` for ``_``, is its name.
    """

    def find_faults(self, spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
        """Return why ``spec`` cannot store matrices of these shapes; empty if it can.

        ``shapes`` are [O, I] by module. One entry per fault of the scheme or per module that does not fit:
        "down_proj has 96 inputs, no multiple of 128".
        """
        ...

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of stored scales."""
        ...

    def tensors(
        self, module: str, rows: QuantizedRows, spec: QuantSpec, dtype: torch.dtype, input_scale: float | None
    ) -> dict[str, Tensor]:
        """Return the tensors of a whole matrix by name.

        ``dtype`` is the model's. ``input_scale`` is the step of static activations.
        """
        ...

    def settings(self, specs: Mapping[str, QuantSpec], ignored: Sequence[str]) -> dict[str, Any]:
        """Return the ``quantization_config`` of a model with these quantised modules.

        ``ignored`` are its other matrices.
        """
        ...


def float16_scales(module: str, rows: GroupedRows) -> Tensor:
    """Return the scales as GPTQ and AWQ store them, float16 [G, O]. They are numbers of float16 already."""
    scales_GO = rows.scales_OG.T.to(torch.float16).contiguous()
    assert torch.equal(scales_GO.float(), rows.scales_OG.T), f"the scales of {module} are not numbers of float16"
    return scales_GO
