"""``ModuleParts``: the tensors that a module of a compressed-tensors checkpoint must have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hasten.checkpoints.quantized.compressed_config import ModuleGroup
from hasten.checkpoints.quantized.compressed_matrix import CompressedMatrix, Storage
from hasten.checkpoints.quantized.packed_codes import WordPacking, find_packing
from hasten.checkpoints.shards import TensorEntry
from hasten.checkpoints.tensor_files import TensorFiles

WEIGHT_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
# The inputs are quantised as the scheme says; of its scales the matrix only knows that they belong to it.
INPUT_PARTS = ("input_scale", "input_zero_point", "input_global_scale")
_FLOATS = ("F16", "BF16", "F32")


@dataclass(slots=True)
class ModuleParts:
    """The tensors of one module, checked against its group.

    ``prefers_dense`` decides where two packings of the codes need as many words.
    """

    files: TensorFiles
    module: str
    group: ModuleGroup
    prefers_dense: bool
    _taken: list[str] = field(default_factory=list)
    _faults: list[str] = field(default_factory=list)

    def find_matrix(self, faults: list[str]) -> CompressedMatrix | None:
        """Return the matrix; None if something is wrong, which is added to ``faults``."""
        storage, shape, packing = self._find_codes()
        matrix = None
        if shape is not None:
            matrix = self._find_scales(storage, shape, packing)
        elif not self._faults:
            self._faults.append(f"{self.module} has no outputs or no inputs")
        faults += self._faults
        return None if self._faults else matrix

    def _find_codes(self) -> tuple[Storage, tuple[int, int] | None, WordPacking | None]:
        """Return how the codes are stored, and the shape of the matrix."""
        spec, form = self.group.spec, self.group.format
        if form == "pack-quantized":
            return "words", *self._find_words()
        if spec.kind == "float" and spec.bits == 4:
            entry = self._take_matrix("weight_packed", "U8")
            return "fp4", (entry.shape[0], 2 * entry.shape[1]) if entry else None, None
        storage: Storage = "fp8" if spec.kind == "float" else "bytes"
        entry = self._take_matrix("weight", "F8_E4M3" if storage == "fp8" else "I8")
        return storage, (entry.shape[0], entry.shape[1]) if entry else None, None

    def _find_words(self) -> tuple[tuple[int, int] | None, WordPacking | None]:
        entry, sizes = self._take_matrix("weight_packed", "I32"), self._take("weight_shape", ("I64", "I32"), (2,))
        if entry is None or sizes is None:
            return None, None
        num_outputs, num_inputs = self.files.read(f"{self.module}.weight_shape").flatten().tolist()
        packing = None
        if num_outputs == entry.shape[0] and num_inputs > 0:
            packing = find_packing(self.group.spec.bits, num_inputs, entry.shape[1], prefer_dense=self.prefers_dense)
        if packing is None:
            stored = f"{list(entry.shape)} words of {self.group.spec.bits}-bit codes"
            self._faults.append(f"{self.module}.weight_shape is {[num_outputs, num_inputs]}, and weight_packed has {stored}")
            return None, None
        return (num_outputs, num_inputs), packing

    def _find_scales(self, storage: Storage, shape: tuple[int, int], packing: WordPacking | None) -> CompressedMatrix:
        spec, form = self.group.spec, self.group.format
        scales = self._scale_shape(shape)
        has_exponents, has_global_scale = form.startswith("mx"), form == "nvfp4-pack-quantized"
        self._take("weight_scale", ("U8",) if has_exponents else ("F8_E4M3",) if has_global_scale else _FLOATS, scales)
        if has_global_scale:
            self._take("weight_global_scale", ("F32",), (1,))
        # Versions before 0.9.4 pack no zero points.
        zeros = self.files.entries.get(f"{self.module}.weight_zero_point")
        stores_bytes = zeros is not None and zeros.dtype == "I8"
        has_packed_zeros = packing is not None and spec.granularity in ("channel", "group") and not stores_bytes
        if spec.has_offsets and packing is not None and has_packed_zeros:
            self._take("weight_zero_point", ("I32",), (packing.num_words(shape[0]), scales[1]))
        elif spec.has_offsets:
            self._take("weight_zero_point", ("I8",), scales)
        reorders = self.group.has_group_index or (spec.granularity == "group" and self._has("weight_g_idx"))
        if reorders:
            self._take("weight_g_idx", ("I32", "I64"), (shape[1],))
        if spec.activations is not None and not spec.activations.dynamic:
            self._take("input_scale", _FLOATS, (1,))
        # Older versions also write zero points of symmetric weights, which are 0, and group indices that are not used.
        self._taken += [f"{self.module}.{part}" for part in (*WEIGHT_PARTS, *INPUT_PARTS) if self._has(part)]
        return CompressedMatrix(
            files=self.files,
            module=self.module,
            parts=tuple(dict.fromkeys(self._taken)),
            shape=shape,
            spec=replace(spec, reorders_inputs=reorders),
            storage=storage,
            packing=packing,
            has_packed_zeros=has_packed_zeros,
            has_exponents=has_exponents,
            has_global_scale=has_global_scale,
        )

    def _scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        spec, (num_outputs, num_inputs) = self.group.spec, shape
        if spec.granularity == "tensor":
            return 1, 1
        if spec.granularity == "channel":
            return num_outputs, 1
        if spec.block is not None:
            return -(-num_outputs // spec.block[0]), -(-num_inputs // spec.block[1])
        assert spec.group_size is not None
        if num_inputs % spec.group_size:
            self._faults.append(f"groups of {spec.group_size} do not divide the {num_inputs} inputs of {self.module}")
        return num_outputs, num_inputs // spec.group_size

    def _take_matrix(self, part: str, dtype: str) -> TensorEntry | None:
        """Return the entry of the codes; None unless it has two dimensions, both of them at least 1."""
        entry = self._take(part, (dtype,), None)
        if entry is not None and (len(entry.shape) != 2 or 0 in entry.shape):
            self._faults.append(f"{self.module}.{part} is {list(entry.shape)}, expected [outputs, inputs]")
            return None
        if part != "weight" and self._has("weight"):
            self._faults.append(f"{self.module}.weight is not expected beside {part}")
        return entry

    def _take(self, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None) -> TensorEntry | None:
        """Return the entry of a part that must be there.

        Dimensions of 1 do not count: versions differ in them.
        """
        name = f"{self.module}.{part}"
        entry = self.files.entries.get(name)
        if entry is None:
            self._faults.append(f"{name} is missing")
            return None
        self._taken.append(name)
        if shape is not None and _squeezed(entry.shape) != _squeezed(shape):
            self._faults.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
            return None
        if entry.dtype not in dtypes:
            self._faults.append(f"{name} is {entry.dtype}, expected {' or '.join(dtypes)}")
            return None
        return entry

    def _has(self, part: str) -> bool:
        return f"{self.module}.{part}" in self.files.entries


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
