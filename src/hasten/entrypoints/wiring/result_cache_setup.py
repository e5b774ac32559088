"""``open_result_cache``: from the options and a loaded model to its result cache."""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch

from hasten.caching.base import StoreLimits
from hasten.caching.guarded_store import GuardedStore
from hasten.caching.open_store import open_store
from hasten.caching.result_cache import ResultCache
from hasten.caching.result_key import EngineIdentity, engine_key
from hasten.checkpoints.model_digest import file_digest
from hasten.core.engine_options import EngineOptions
from hasten.core.memory_size import parse_bytes
from hasten.core.version import __version__
from hasten.entrypoints.wiring.loaded_digest import LoadedDigest
from hasten.ops.cpu.library import LIBRARY_FILE
from hasten.runners.backends.base import Backend


class ResultCacheWarning(UserWarning):
    """``result_cache`` was given and keeps nothing; the message says why."""


def open_result_cache(
    options: EngineOptions, digest: LoadedDigest, dtype: torch.dtype, backend: Backend, max_model_len: int
) -> ResultCache | None:
    """Return the result cache of an engine; None without the option ``result_cache``.

    Warns if no output of the engine is determined. Raises ``InvalidOption`` for an address or a file that cannot be used.
    """
    if options.result_cache is None:
        return None
    limits = StoreLimits(
        ttl=options.result_cache_ttl,
        max_bytes=parse_bytes(options.result_cache_bytes, "result_cache_bytes"),
        max_entries=options.result_cache_entries,
        eviction=options.result_cache_eviction,
        timeout=options.result_cache_timeout,
    )
    store = GuardedStore(open_store(options.result_cache, limits))
    off_because = backend.batch_dependence(dtype)
    if off_because is not None:
        warnings.warn(f"result_cache has no effect: {off_because}.", ResultCacheWarning, stacklevel=3)
        return ResultCache(store, b"", off_because)
    identity = EngineIdentity(
        weights=digest.get().weights,
        text=digest.get().text,
        kernels=backend.kernels,
        library=library_digest(),
        packages=_packages(),
        max_model_len=max_model_len,
        version=__version__,
    )
    return ResultCache(store, engine_key(options, identity))


def library_digest() -> str:
    """Return the SHA-256 of the compiled kernels; empty without them."""
    return file_digest(LIBRARY_FILE) if LIBRARY_FILE.exists() else ""


def _packages() -> str:
    # PyTorch rounds log-probabilities and beam scores differently with each instruction set.
    torch_kernels = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} {torch_kernels}, tokenizers {version('tokenizers')}"
