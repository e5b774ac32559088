"""``build_engine``: loads a model and builds its engine, in the order of the package's docstring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hasten.caching.result_cache import ResultCache
from hasten.caching.stored_result import StoredResult
from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.core.request import Request
from hasten.engine.embedder import Embedder
from hasten.engine.engine import Engine
from hasten.engine.kv_cache_sizing import KvCacheSizing, kv_groups, size_kv_cache
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.model_info import ModelInfo
from hasten.entrypoints.progress import LoadTimer, loading_bar, print_status
from hasten.entrypoints.prompt_hash_exits import PromptHashExits, exit_info
from hasten.entrypoints.shared_results import RequestEngine, SharedResults
from hasten.entrypoints.soft_prompt_loader import SoftPromptLoader
from hasten.entrypoints.wiring.check_quantization import check_quantization
from hasten.entrypoints.wiring.early_exit_setup import EarlyExitSetup
from hasten.entrypoints.wiring.generation_defaults import default_sampling_params, eos_token_ids
from hasten.entrypoints.wiring.load_drafters import drafter_weight_bytes, plan_draft_model
from hasten.entrypoints.wiring.loaded_digest import LoadedDigest
from hasten.entrypoints.wiring.result_cache_setup import library_digest, open_result_cache
from hasten.entrypoints.wiring.speculative_setup import SpeculativeSetup
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.pool import BlockPool
from hasten.layers.rotary import RotarySpec
from hasten.models.load import LoadedModel, plan_decoder, read_spec
from hasten.runners.backends.base import Backend
from hasten.runners.backends.choose import choose_backend
from hasten.runners.base import KvCacheConfig
from hasten.runners.soft_prompt_runner import SoftPromptRunner
from hasten.runners.soft_prompt_table import SoftPromptTable
from hasten.sampling.chain import Chain
from hasten.sampling.sampler import Sampler
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.scheduler import Scheduler
from hasten.speculative.cost_model import CostModel
from hasten.text.detokenizer import Detokenizer
from hasten.text.tokenizer import TextTokenizer

SCHEDULER_OPTIONS = [field.name for field in dataclasses.fields(SchedulerConfig) if field.name != "max_model_len"]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    engine: Engine
    input_processor: InputProcessor
    result_cache: ResultCache | None
    info: ModelInfo
    prompt_hash_exits: PromptHashExits
    soft_prompts: SoftPromptLoader
    digest: LoadedDigest
    kv: KvAccess
    embedder: Embedder

    def make_front(self) -> RequestEngine:
        """Return what runs the requests: the engine, behind the result cache if there is one."""
        return self.engine if self.result_cache is None else SharedResults(self.engine, self.result_cache)

    def admit(self, request: Request) -> Request:
        """Return the request as the engine takes it, with its exit layer and its grammar compiled.

        Raises ``InvalidRequest``. Compiling a grammar may take seconds.
        """
        self.input_processor.guides.check(request.params)
        return self.prompt_hash_exits.complete(request)

    def find_result(self, request: Request) -> StoredResult | Request:
        """Return the stored result of a request, or the request as the engine takes it."""
        return request if self.result_cache is None else self.result_cache.find(request)

    def result_cache_stats(self) -> dict[str, Any] | None:
        return None if self.result_cache is None else self.result_cache.stats()


@dataclass(frozen=True, slots=True)
class KvAccess:
    """What saving and loading KV blocks needs beside the engine."""

    pool: BlockPool
    kernels: str
    library: str  # SHA-256 of the compiled kernels; empty without them
    rotary: tuple[RotarySpec, ...]  # of all layers


def build_engine(model: str, options: EngineOptions) -> LoadedEngine:
    """Load ``model`` (a folder, a GGUF file, a hub id or ``demo``) and build its engine.

    Raises ``HastenError``.
    """
    folder = resolve(model, options.revision, quiet=not options.show_progress)
    timer = LoadTimer()
    with timer.phase("kernels"):
        checkpoint = Checkpoint.open(folder)
        check_quantization(options, checkpoint)
        backend = choose_backend(options, read_spec(checkpoint))
    digest = LoadedDigest(checkpoint, model, visible=options.show_progress)
    with timer.phase("weights"), loading_bar(model, visible=options.show_progress) as progress:
        plan = plan_decoder(checkpoint, dtype=options.dtype, ops=backend.ops, formats=backend.formats)
        draft_plan = plan_draft_model(options, backend)
        target = plan.load(progress, other_bytes=drafter_weight_bytes(options, backend, draft_plan))
        speculative = SpeculativeSetup.load(options, backend, target, draft_plan)
        early_exit = EarlyExitSetup.load(options, backend, target, speculation=speculative.enabled)
    with timer.phase("tokenizer"):
        tokenizer = TextTokenizer.of(checkpoint, target.spec.vocab_size)
    sizing = _size_kv_cache(options, backend, target, speculative)
    kv = KvCacheConfig(kv_groups(target.spec), sizing.num_blocks, options.block_size, target.dtype)
    kv_manager = _kv_cache_manager(kv, options)
    with timer.phase("program"):
        runner = _make_runner(options, backend, target, kv, speculative)
    with timer.phase("speculation"):
        costs = speculative.measure_costs(kv, runner)
        self_draft_runner = early_exit.build_self_draft_runner(runner, kv_manager)
        drafter = speculative.build_drafter(kv.num_blocks, costs, self_draft_runner)
    info = _model_info(model, options, target, tokenizer, sizing.max_model_len, early_exit)
    input_processor = InputProcessor.of(info, tokenizer)
    engine = Engine(
        early_exit.build_runner(runner, self_draft_runner, has_own_thread_pool=backend.has_own_thread_pool),
        Scheduler(_scheduler_config(options, sizing.max_model_len), kv_manager),
        partial(_detokenizer, tokenizer),
        Sampler(backend.token_selector(_chain(tokenizer))),
        drafter,
        guide=input_processor.guides.guide,
        costs=costs,
    )
    with timer.phase("result cache"):
        result_cache = open_result_cache(options, digest, target.dtype, backend, sizing.max_model_len)
    engine.stats.plain_step = _plain_step(costs)
    print_status(f"loaded {_with_scheme(model, target)} in {timer}", visible=options.show_progress)
    facts = {"model": model, **_describe(target, backend, sizing, options), **speculative.describe(), **timer.describe()}
    embedder = Embedder(runner, target.decoder.norm, target.spec.hidden_size, kv_manager, options.max_num_batched_tokens)
    access = KvAccess(runner.pool, backend.kernels, library_digest(), target.spec.rotary_specs)
    return LoadedEngine(
        engine,
        input_processor,
        result_cache,
        dataclasses.replace(info, description=facts),
        PromptHashExits(target.decoder, early_exit.checkpoint),
        SoftPromptLoader(runner.table, sizing.max_model_len, frozenset({Path(model).name, target.folder.name})),
        digest,
        access,
        embedder,
    )


def _model_info(
    model: str,
    options: EngineOptions,
    target: LoadedModel,
    tokenizer: TextTokenizer | None,
    max_model_len: int,
    early_exit: EarlyExitSetup,
) -> ModelInfo:
    """Return the facts of the model, without its description."""
    return ModelInfo(
        model=model,
        folder=str(target.folder),
        vocab_size=target.spec.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=eos_token_ids(target, tokenizer),
        defaults=default_sampling_params(target.generation_config, target.folder),
        options=options,
        exits=exit_info(target.spec.num_layers, early_exit.checkpoint),
        description={},
    )


def _scheduler_config(options: EngineOptions, max_model_len: int) -> SchedulerConfig:
    return SchedulerConfig(max_model_len=max_model_len, **_fields(options, SCHEDULER_OPTIONS))


def _chain(tokenizer: TextTokenizer | None) -> Chain:
    return Chain() if tokenizer is None else Chain.with_bad_words(tokenizer.bad_words)


def _plain_step(costs: CostModel | None) -> Callable[[int], float] | None:
    """Return the measured seconds of a step without drafts, by its tokens."""
    # ``costs`` itself goes on learning from speculative steps.
    return None if costs is None else CostModel(costs.measured).seconds


def _size_kv_cache(options: EngineOptions, backend: Backend, target: LoadedModel, speculative: SpeculativeSetup) -> KvCacheSizing:
    groups = kv_groups(target.spec)
    return size_kv_cache(
        groups,
        block_bytes=backend.block_bytes(groups, options.block_size, target.dtype) + speculative.block_bytes,
        max_positions=target.spec.max_positions,
        reserved_bytes=speculative.state_bytes,
        **_fields(options, ("block_size", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory")),
    )


def _kv_cache_manager(kv: KvCacheConfig, options: EngineOptions) -> KvCacheManager:
    pins = _fields(options, ("max_pins", "max_pinned_share"))
    return KvCacheManager(kv.groups, kv.num_blocks, kv.block_size, keep_cached=options.prefix_caching, **pins)


def _make_runner(
    options: EngineOptions, backend: Backend, target: LoadedModel, kv: KvCacheConfig, speculative: SpeculativeSetup
) -> SoftPromptRunner:
    runner = backend.make_runner(target.decoder, kv, options.max_num_batched_tokens, speculative.aux_layer_indices)
    table = SoftPromptTable(target.spec.vocab_size, target.spec.hidden_size)
    return SoftPromptRunner(runner, table, target.decoder.embed)


def _fields(options: EngineOptions, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _with_scheme(model: str, target: LoadedModel) -> str:
    clause = target.weights.clause()
    return f"{model} ({clause})" if clause else model


def _describe(target: LoadedModel, backend: Backend, sizing: KvCacheSizing, options: EngineOptions) -> dict[str, Any]:
    return {
        "folder": str(target.folder),
        "family": target.spec.model_type,
        "vocab_size": target.spec.vocab_size,
        "dtype": str(target.dtype).removeprefix("torch."),
        **backend.describe(target.decoder),
        "weights": target.weights.clause() or options.quantization or str(target.dtype).removeprefix("torch."),
        "file_bytes": target.weights.file_bytes,
        **target.weights.as_dict(),
        "max_model_len": sizing.max_model_len,
        "kv_blocks": sizing.num_blocks,
        "kv_tokens": sizing.num_blocks * options.block_size,
        "kv_bytes": sizing.kv_bytes,
        "batching": options.batching,
        "prefix_caching": options.prefix_caching,
        "max_pins": options.max_pins if options.prefix_caching else 0,
        "exits": options.exits,
    }


def _detokenizer(tokenizer: TextTokenizer | None, request: Request) -> Detokenizer | None:
    if tokenizer is None:
        return None
    return tokenizer.detokenizer(request.params.skip_special_tokens, request.prompt_token_ids)
