"""``CompressedMatrix``: a matrix that compressed-tensors stored, decoded a few outputs at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hasten.checkpoints.quantized.microscaling import e8m0_scales, fp4_codes
from hasten.checkpoints.quantized.packed_codes import WordPacking
from hasten.checkpoints.tensor_files import TensorFiles
from hasten.core.errors import CheckpointError
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, GroupedRows, QuantizedRows

Storage = Literal["words", "bytes", "fp4", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedMatrix:
    """The parts of a matrix and how to read them. Shapes and dtypes of the parts are checked before."""

    files: TensorFiles
    module: str
    parts: tuple[str, ...]
    shape: tuple[int, int]
    spec: QuantSpec
    storage: Storage
    packing: WordPacking | None = None  # of codes in words, and of their zeros
    has_packed_zeros: bool = False
    has_exponents: bool = False  # scales are E8M0
    has_global_scale: bool = False

    @property
    def name(self) -> str:
        return f"{self.module}.weight"

    @property
    def nbytes(self) -> int:
        return sum(self.files.entries[part].nbytes for part in self.parts)

    def input_order(self) -> Tensor | None:
        if not self.spec.reorders_inputs:
            return None
        groups, size = self._read("weight_g_idx").flatten().long(), self.spec.group_size
        assert size is not None
        if (groups == -1).any():  # the library's mark of an index that was never filled in
            return None
        num_groups = self.shape[1] // size
        if ((groups < 0) | (groups >= num_groups)).any() or (groups.bincount(minlength=num_groups) != size).any():
            raise self._broken("weight_g_idx", f"does not put the inputs into {num_groups} groups of {size}")
        return groups.argsort(stable=True)

    def rows(self, start: int, stop: int) -> QuantizedRows:
        scales, order = self._scales(start, stop), self.input_order()
        size = min(self.spec.group_size or (self.spec.block[1] if self.spec.block else self.shape[1]), self.shape[1])
        if self.storage == "fp8":
            values = self._read("weight")[start:stop]
            if (values.view(torch.uint8) & 0x7F == 0x7F).any():
                raise self._broken("weight", "holds NaN")
            if order is not None:
                values = values.view(torch.uint8)[:, order].view(torch.float8_e4m3fn)
            return Fp8Rows(values, scales, size)
        codes = self._codes(start, stop)
        zeros = self._zeros(start, stop) if self.spec.zero is None else self.spec.zero
        return GroupedRows(codes if order is None else codes[:, order], scales, size, zeros)

    def _codes(self, start: int, stop: int) -> Tensor:
        """Return the codes from 0, uint8 [O, I]."""
        if self.storage == "fp4":
            return fp4_codes(self._read("weight_packed")[start:stop])
        if self.packing is not None:
            return self.packing.unpack(self._read("weight_packed")[start:stop], self.shape[1])
        return self._unsigned("weight", self._read("weight")[start:stop])

    def _scales(self, start: int, stop: int) -> Tensor:
        """Return the scales, float32 [O, G]."""
        stored = self._per_output("weight_scale", start, stop)
        scales = e8m0_scales(stored) if self.has_exponents else stored.float()
        if self.has_global_scale:
            scales = scales / self._read("weight_global_scale").float().reshape(1, 1)
        if not scales.isfinite().all():
            raise self._broken("weight_scale", "holds NaN or infinity")
        return scales / 2 if self.storage == "fp4" else scales  # a code is twice the number

    def _zeros(self, start: int, stop: int) -> Tensor:
        """Return the codes of weight 0, float32 [O, G]."""
        if not self.has_packed_zeros:
            return self._unsigned("weight_zero_point", self._per_output("weight_zero_point", start, stop)).float()
        assert self.packing is not None
        first, word = self.packing.aligned(start)
        words_WG = self._read("weight_zero_point").reshape(self.packing.num_words(self.shape[0]), -1)
        words_GW = words_WG[word : word + self.packing.num_words(stop - first)].t()
        return self.packing.unpack(words_GW, stop - first).t()[start - first :].float()

    def _per_output(self, part: str, start: int, stop: int) -> Tensor:
        """Return the values of a part that has the shape of the scales, for each of the outputs."""
        values = self._read(part)
        if self.spec.granularity == "tensor":
            return values.reshape(1, 1).expand(stop - start, 1)
        if self.spec.block is None:
            return values.reshape(self.shape[0], -1)[start:stop]
        outputs, inputs = self.spec.block
        values = values.reshape(-(-self.shape[0] // outputs), -(-self.shape[1] // inputs))
        return values[torch.arange(start, stop, dtype=torch.int64, device="cpu") // outputs]

    def _unsigned(self, part: str, values: Tensor) -> Tensor:
        """Return signed integers as codes from 0, uint8."""
        half = 1 << (self.spec.bits - 1)
        if half < 128 and ((values < -half) | (values >= half)).any():
            raise self._broken(part, f"holds numbers of more than {self.spec.bits} bits")
        return (values.short() + half).to(torch.uint8)

    def _read(self, part: str) -> Tensor:
        return self.files.read(f"{self.module}.{part}")

    def _broken(self, part: str, fault: str) -> CheckpointError:
        return CheckpointError(
            f"the tensor {self.module}.{part} of {self.files.folder} {fault}",
            remedy="Download the checkpoint again, or quantise the model again",
        )
