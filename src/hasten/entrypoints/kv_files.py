"""``KvFiles``: saves KV blocks of prompts to files, and loads them into an engine's prefix cache."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hasten.checkpoints.kv_file import GroupShape, KvSource, OpenKvFile, open_kv_file, write_kv_file
from hasten.core.errors import CapacityError, InvalidOption, InvalidRequest, KvFileError, show
from hasten.core.kv_file import KvFile
from hasten.core.version import __version__
from hasten.engine.engine import Engine
from hasten.entrypoints.progress import transfer_bar
from hasten.entrypoints.wiring.build_engine import LoadedEngine
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup


class KvFiles:
    """The caller has the engine for itself. ``check`` is called where an interrupt may be raised."""

    def __init__(self, loaded: LoadedEngine, check: Callable[[], None] = lambda: None) -> None:
        self._loaded, self._check = loaded, check
        self._visible = loaded.input_processor.options.show_progress

    def save(self, engine: Engine, token_ids: Sequence[int], path: object, tenant: str) -> KvFile:
        """See ``LLM.save_kv``."""
        begin, file = time.perf_counter(), _path(path)
        kv, pool = engine.scheduler.kv, self._loaded.kv.pool
        num_tokens = len(token_ids) // kv.block_size * kv.block_size
        if not num_tokens:
            raise InvalidRequest(
                "the prompt does not fill a KV block, and files hold whole blocks",
                got=f"{len(token_ids)} tokens",
                allowed=f"from {kv.block_size} tokens",
                remedy="Give a longer prompt, or load the model with a smaller block_size",
            )
        prefix = token_ids[:num_tokens]
        source, shapes = self._source(kv), self._shapes(kv, num_tokens)
        with transfer_bar("computing the prompt", " tokens", visible=self._visible) as computed:

            def before_step(num_computed: int) -> None:
                self._check()
                computed(num_computed, num_tokens)

            with (
                engine.prefix_blocks(before_step).hold(prefix, tenant) as blocks,
                self._byte_bar(f"writing {file.name}", sum(map(math.prod, shapes))) as on_bytes,
            ):

                def read(group: int, layer: int, out: Tensor) -> None:
                    pool.read_blocks(kv.groups[group].layers[layer], blocks[group], out)

                name = str(self._loaded.info.model)
                facts = write_kv_file(file, name, source, prefix, shapes, read, on_bytes)
        return dataclasses.replace(facts, seconds=time.perf_counter() - begin)

    def load(self, engine: Engine, path: object, tenant: str) -> KvFile:
        """See ``LLM.load_kv``."""
        begin, kv = time.perf_counter(), engine.scheduler.kv
        if not self._loaded.input_processor.options.prefix_caching:
            raise InvalidOption(
                "loaded KV blocks need the prefix cache, where requests find them",
                got="prefix_caching=False",
                remedy="Load the model with prefix_caching=True",
            )
        with open_kv_file(_path(path)) as file:
            self._source(kv).check(file.source, f"{file.path}, saved from {file.facts.model},")
            token_ids = self._token_ids(file, kv)

            first_live = [group.live_blocks(len(token_ids) // kv.block_size, kv.block_size).start for group in kv.groups]

            def write(new: Sequence[Mapping[int, int]]) -> None:
                def write_layer(group: int, layer: int, data: Tensor) -> None:
                    data = _select(data, [i - first_live[group] for i in new[group]])
                    self._loaded.kv.pool.write_blocks(kv.groups[group].layers[layer], list(new[group].values()), data)

                with self._byte_bar(f"loading {file.path.name}", file.facts.num_bytes) as on_bytes:
                    file.load(write_layer, on_bytes)

            num_new = engine.prefix_blocks().insert(token_ids, tenant, write)
        return dataclasses.replace(file.facts, num_new_blocks=num_new, seconds=time.perf_counter() - begin)

    def clear(self, engine: Engine, token_ids: Sequence[int] | None, tenant: str) -> int:
        """See ``LLM.clear_kv``. ``token_ids`` None: all blocks."""
        if token_ids is not None:
            return engine.prefix_blocks().remove(token_ids, tenant)
        if tenant:
            raise InvalidRequest(
                "without a prompt, the blocks of one tenant cannot be told from those of others",
                got=f"cache_salt={show(tenant)}",
                remedy="Give the prompt, or leave cache_salt out to clear all",
            )
        return engine.clear_prefix_cache()

    def _token_ids(self, file: OpenKvFile, kv: KvCacheManager) -> list[int]:
        """Return the checked token ids of a file."""
        num_tokens, processor = file.facts.num_tokens, self._loaded.input_processor
        if not num_tokens or num_tokens % kv.block_size:
            raise KvFileError(f"{file.path} does not hold whole blocks", got=f"{num_tokens} tokens", remedy="Save the prefix again")
        if num_tokens >= processor.max_model_len:
            raise CapacityError(
                "the saved prefix leaves no room for an answer in the context",
                got=f"{num_tokens} tokens",
                allowed=f"up to {processor.max_model_len - 1}",
                remedy="Raise max_model_len",
            )
        file.check_shapes(num_tokens, self._shapes(kv, num_tokens))
        token_ids = file.token_ids()
        if min(token_ids) < 0 or max(token_ids) >= processor.vocab_size:
            raise KvFileError(
                f"{file.path} has token ids outside the vocabulary",
                allowed=f"0 to {processor.vocab_size - 1}",
                remedy="Save it again",
            )
        return token_ids

    @contextmanager
    def _byte_bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a callback (bytes done since the last call) that may raise an interrupt."""
        with transfer_bar(description, "B", visible=self._visible) as progress:

            def on_bytes(num_bytes: int) -> None:
                self._check()
                progress(num_bytes, total)

            yield on_bytes

    def _shapes(self, kv: KvCacheManager, num_tokens: int) -> list[GroupShape]:
        """Return the tensors of each group, for a prefix of whole blocks."""
        num_blocks, pool = num_tokens // kv.block_size, self._loaded.kv.pool
        return [(len(g.layers), len(g.live_blocks(num_blocks, kv.block_size)), pool.block_bytes(g.layers[0])) for g in kv.groups]

    def _source(self, kv: KvCacheManager) -> KvSource:
        loaded = self._loaded
        options, description = loaded.input_processor.options, loaded.info.description
        return KvSource(
            weights=loaded.digest.get().weights,
            dtype=str(description["dtype"]),
            quantization=str(options.quantization or "none"),
            activations=options.activations,
            kv_cache_dtype=str(description["kv_cache_dtype"]),
            block_size=str(kv.block_size),
            groups="; ".join(map(_describe_group, kv.groups)),
            rotary="; ".join(map(repr, loaded.kv.rotary)) or "none",
            kernels=loaded.kv.kernels,
            library=loaded.kv.library,
            hasten=__version__,
        )


def _describe_group(group: KvGroup) -> str:
    layers = ",".join(map(str, group.layers))
    window = "" if group.window is None else f", window {group.window}"
    return f"layers {layers}: {group.num_kv_heads} heads of {group.head_dim}{window}"


def _select(data: Tensor, rows: Sequence[int]) -> Tensor:
    """Return these rows; without a copy if they are all of them."""
    return data if len(rows) == len(data) else data[torch.tensor(rows, dtype=torch.int64, device="cpu")]


def _path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InvalidOption("the path of a KV file is not a path", got=show(path), allowed="a text or a Path")
    return Path(path)
