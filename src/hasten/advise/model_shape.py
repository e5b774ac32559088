"""``read_shape``: the sizes of a model and what it keeps, before any weight is read.

Its ``config.json`` alone is enough. No weight is read and nothing is downloaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.advise.storage import KvBytes, Storage, plain_formats, plain_kv_bytes, planned_storage, storage_of
from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import SHIPPED, cached_models
from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption, ModelNotFound, UnsupportedModel, nearest, show
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.kv.group import KvGroup
from hasten.models.family import find_family
from hasten.models.load import DTYPES, plan_decoder, read_spec
from hasten.models.spec import DecoderSpec
from hasten.ops.torch.backend import TorchOps
from hasten.runners.backends.base import Backend
from hasten.runners.backends.choose import choose_backend

UNNAMED_DTYPE = "bfloat16"  # of a configuration that names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """In which form weights, keys and values are kept. The fields are those of ``EngineOptions``."""

    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelShape:
    name: str
    spec: DecoderSpec
    dtype: torch.dtype
    storage: Storage
    arithmetic: str  # of its products: a quantization of the engine, or the dtype
    has_int8_kv: bool

    @property
    def groups(self) -> tuple[KvGroup, ...]:
        return kv_groups(self.spec)


def read_shape(model: str, precision: Precision, *, is_here: bool = True, block_size: int = 16) -> ModelShape:
    """Return the shape of a model: a name of ``LLM``, or a ``config.json``.

    Models of the hub must be in the cache. ``is_here``: as this machine's kernels keep it; else as plain arrays of its dtype or its
    quantisation. Raises ``CheckpointError`` (``ModelNotFound``, ``UnsupportedModel``) and ``InvalidOption``.
    """
    for name, value, allowed in (("dtype", precision.dtype, ("auto", *DTYPES)), ("kv_cache_dtype", precision.kv_cache_dtype, _KV)):
        if value not in allowed:
            raise InvalidOption(f"unknown {name}", got=show(value), allowed=", ".join(allowed), remedy=nearest(value, allowed))
    path = _find(model)
    if path.suffix == ".json":
        return _from_config(model, read_json(path), path, precision, is_here, block_size)
    if not is_gguf(path) and not any(path.glob("*.safetensors")):
        return _from_config(model, read_json(path / "config.json"), path / "config.json", precision, is_here, block_size)
    checkpoint, int8_kv = Checkpoint.open(path), precision.kv_cache_dtype == "int8"
    spec = read_spec(checkpoint)
    if checkpoint.matrices and precision.quantization is not None:
        scheme = next(iter(checkpoint.matrices.values())).spec.describe()
        raise InvalidOption(
            f"the weights of {model} are already quantised",
            got=scheme,
            remedy="Leave the quantization out, or choose another model",
        )
    backend = choose_backend(_options(precision), spec) if is_here else None
    if backend is None and not checkpoint.matrices:
        plan = plan_decoder(checkpoint, dtype=precision.dtype, ops=TorchOps())
        storage = _planned(plan.spec, plan.dtype, precision, None, block_size)
        return ModelShape(model, plan.spec, plan.dtype, storage, _arithmetic(precision, plan.dtype), int8_kv)
    # Matrices that the checkpoint quantises keep their codes, here and elsewhere.
    backend = backend or choose_backend(EngineOptions())
    plan = plan_decoder(checkpoint, dtype=precision.dtype, ops=backend.ops, formats=backend.formats)
    kv_bytes = _kv_bytes(plan.spec, plan.dtype, precision, backend if is_here else None, block_size)
    storage = storage_of(plan.decoder, kv_bytes)
    if not checkpoint.matrices:
        return ModelShape(model, plan.spec, plan.dtype, storage, _arithmetic(precision, plan.dtype), int8_kv)
    # The rates of hasten's own quantisation stand for those of a stored one with as many bits.
    bits = 4 if storage.layers[0].up < 6.5 else 8
    suffix = "" if plan.summary().activations == "int8" else "-weight-only"
    return ModelShape(model, plan.spec, plan.dtype, storage, f"int{bits}{suffix}", int8_kv)


_KV = ("auto", "int8")


def _find(model: str) -> Path:
    """Return a folder, a GGUF file or a configuration. Raises ``ModelNotFound``."""
    if model in SHIPPED:
        return SHIPPED[model]
    path = Path(model).expanduser()
    try:
        if path.suffix == ".json" and os.path.isfile(path):
            return path
        if is_gguf(path) and os.path.isfile(path):
            return path
        if os.path.isdir(path):
            if not os.path.isfile(path / "config.json"):
                raise ModelNotFound(f"{path} has no config.json, so it is not a model folder", remedy="Check the path")
            return path
    except ValueError:  # a name that no file can have
        pass
    cached = _cached_config(model)
    if cached is not None:
        return cached.parent
    known = [*SHIPPED, *(model.name for model in cached_models())]
    raise ModelNotFound(
        "there is no such model folder, GGUF file or config.json, and the cache does not have it",
        got=show(model),
        remedy=f"{nearest(model, known)}, or download it with hasten pull",
    )


def _cached_config(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except (HFValidationError, OSError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def _from_config(name: str, config: dict[str, Any], path: Path, precision: Precision, is_here: bool, block_size: int) -> ModelShape:
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(
            f"{path} describes quantised weights, whose form only the weights tell",
            got=show(config["quantization_config"]),
            remedy="Give the folder with the weights, or the configuration of the original and --quantization",
        )
    spec = find_family(config).spec(config, source=str(path))
    dtype = DTYPES[_config_dtype(config, path) if precision.dtype == "auto" else precision.dtype]
    backend = choose_backend(_options(precision), spec) if is_here else None
    storage = _planned(spec, dtype, precision, backend, block_size)
    return ModelShape(name, spec, dtype, storage, _arithmetic(precision, dtype), precision.kv_cache_dtype == "int8")


def _arithmetic(precision: Precision, dtype: torch.dtype) -> str:
    return precision.quantization or str(dtype).removeprefix("torch.")


def _config_dtype(config: dict[str, Any], path: Path) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or UNNAMED_DTYPE
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name not in DTYPES:
        raise UnsupportedModel(
            f"hasten does not compute in the dtype that {path} names", got=show(value), allowed=", ".join(DTYPES)
        )
    return str(name)


def _planned(spec: DecoderSpec, dtype: torch.dtype, precision: Precision, backend: Backend | None, block_size: int) -> Storage:
    formats = plain_formats(dtype, precision.quantization) if backend is None else backend.formats(dtype).on_meta()
    return planned_storage(spec, dtype, formats, _kv_bytes(spec, dtype, precision, backend, block_size))


def _kv_bytes(spec: DecoderSpec, dtype: torch.dtype, precision: Precision, backend: Backend | None, block_size: int) -> KvBytes:
    """Return the bytes of the backend's blocks, padding included, per token."""
    if backend is None:
        return plain_kv_bytes(spec, dtype, int8_kv=precision.kv_cache_dtype == "int8")
    shapes = {(group.num_kv_heads, group.head_dim) for group in kv_groups(spec)}
    return {shape: backend.block_bytes((KvGroup((0,), *shape),), block_size, dtype) / block_size for shape in shapes}


def _options(precision: Precision) -> EngineOptions:
    return EngineOptions(quantization=precision.quantization, kv_cache_dtype=precision.kv_cache_dtype)
