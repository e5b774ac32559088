"""Putting an engine together: checkpoint, decoder, pool, scheduler, tokenizer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.engine.engine import Engine
from hasten.engine.kv_cache_sizing import KvCacheSizing, size_kv_cache
from hasten.engine.kv_groups import kv_groups
from hasten.entrypoints.early_exit_setup import EarlyExitSetup
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.load_timer import LoadTimer
from hasten.entrypoints.progress import loading_bar, tell
from hasten.entrypoints.speculative_setup import SpeculativeSetup
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.models.load import LoadedModel, load_decoder
from hasten.runners.backends.base import Backend
from hasten.runners.backends.choose import choose_backend
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.step_costs import StepCosts
from hasten.text.detokenizer import Detokenizer
from hasten.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    engine: Engine
    input_processor: InputProcessor
    tokenizer: TextTokenizer | None
    description: Mapping[str, Any]  # what runs, with which kernels, in how much memory


def build_engine(model: str, options: EngineOptions) -> LoadedEngine:
    """Load ``model`` (a folder, a hub id or ``demo``) and build its engine. Raises ``HastenError``."""
    folder = resolve(model, options.revision, quiet=not options.show_progress)
    load_timer = LoadTimer()
    with load_timer.phase("kernels"):
        backend = choose_backend(options)
    with load_timer.phase("weights"), loading_bar(model, visible=options.show_progress) as progress:
        loaded = load_decoder(folder, dtype=options.dtype, ops=backend.ops, formats=backend.formats, progress=progress)
        speculation = SpeculativeSetup.load(options, backend, loaded)
        exits = EarlyExitSetup.load(options, backend, loaded, guess=speculation.allowed)
    spec = loaded.spec
    with load_timer.phase("tokenizer"):
        tokenizer = TextTokenizer.load(folder, spec.vocab_size)
    groups = kv_groups(spec)
    block_bytes = backend.block_bytes(groups, options.block_size, loaded.dtype) + speculation.block_bytes
    fit = _fit(options, groups, block_bytes, spec.max_positions)
    with load_timer.phase("program"):
        staged = backend.runner(
            loaded.decoder,
            groups,
            fit.num_blocks,
            options.block_size,
            loaded.dtype,
            options.max_num_batched_tokens,
            aux_layer_indices=speculation.aux_layer_indices,
        )
    space = KvCacheManager(groups, fit.num_blocks, options.block_size, keep_cached=options.prefix_caching)
    with load_timer.phase("speculation"):
        costs = speculation.costs(fit, staged)
        shallow = exits.shallow(staged, space, options)
        drafter = speculation.drafter(fit, costs, shallow)
    scheduler = Scheduler(_scheduler_config(options, fit.max_model_len), space)

    def detokenizer(request: Request) -> Detokenizer | None:
        if tokenizer is None:
            return None
        return tokenizer.detokenizer(request.params.skip_special_tokens, request.prompt_token_ids)

    runner = exits.runner(shallow or staged, own_threads=backend.own_threads)
    engine = Engine(runner, scheduler, detokenizer, Sampler(backend.selector()), drafter, costs=costs)
    engine.stats.plain_step = None if costs is None else StepCosts(costs.measured).seconds
    input_processor = InputProcessor(
        tokenizer=tokenizer,
        vocab_size=spec.vocab_size,
        max_model_len=fit.max_model_len,
        eos_token_ids=eos_token_ids(loaded, tokenizer),
        defaults=default_sampling_params(loaded.generation_config, folder),
        seeds=random.Random(options.seed),
        takes_priority=options.scheduling_policy == "priority",
        exits=exits,
    )
    tell(f"loaded {model} in {load_timer}", visible=options.show_progress)
    described = {**_describe(loaded, backend, fit, options), **speculation.describe(), "exits": options.exits}
    description = {"model": model, **described, "load_seconds": load_timer.seconds}
    return LoadedEngine(engine, input_processor, tokenizer, description)


def _scheduler_config(options: EngineOptions, max_model_len: int) -> SchedulerConfig:
    names = {field.name for field in dataclasses.fields(SchedulerConfig)} - {"max_model_len"}
    return SchedulerConfig(max_model_len=max_model_len, **{name: getattr(options, name) for name in names})


def _fit(options: EngineOptions, groups: Sequence[KvGroup], block_bytes: int, max_positions: int) -> KvCacheSizing:
    return size_kv_cache(
        groups,
        block_size=options.block_size,
        block_bytes=block_bytes,
        max_positions=max_positions,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_step=options.max_num_batched_tokens,
        kv_cache_memory=options.kv_cache_memory,
    )


def _describe(loaded: LoadedModel, backend: Backend, fit: KvCacheSizing, options: EngineOptions) -> dict[str, Any]:
    return {
        "folder": str(loaded.folder),
        "family": loaded.spec.family,
        "vocab_size": loaded.spec.vocab_size,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **backend.describe(loaded.decoder),
        "max_model_len": fit.max_model_len,
        "kv_blocks": fit.num_blocks,
        "kv_tokens": fit.num_blocks * options.block_size,
        "kv_bytes": fit.kv_bytes,
        "batching": options.batching,
        "prefix_caching": options.prefix_caching,
    }


def eos_token_ids(loaded: LoadedModel, tokenizer: TextTokenizer | None) -> tuple[int, ...]:
    """Every token that the checkpoint's files name as the end of a sequence."""
    found: list[int] = []
    for named in (loaded.generation_config.get("eos_token_id"), loaded.config.get("eos_token_id")):
        found += named if isinstance(named, list) else [named] if named is not None else []
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(found))


def default_sampling_params(generation_config: Mapping[str, Any], folder: Path) -> SamplingParams:
    """What the checkpoint's ``generation_config.json`` recommends; greedy if it says ``do_sample: false``.

    Raises ``CheckpointError`` if it recommends what cannot be.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size")
    values = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    # transformers writes 0 for "off" here.
    values = {name: value for name, value in values.items() if not (name in ("top_k", "no_repeat_ngram_size") and value == 0)}
    if generation_config.get("do_sample") is False:
        values["temperature"] = 0.0
    try:
        return SamplingParams.from_dict(values)
    except InvalidRequest as wrong:
        raise CheckpointError(f"generation_config.json in {folder} is wrong: {wrong.what}", remedy="Correct the file") from wrong
