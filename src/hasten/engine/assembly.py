"""Putting an engine together: checkpoint, decoder, pool, scheduler, tokenizer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams
from hasten.decoding.step_costs import StepCosts
from hasten.engine.backends.base import Backend
from hasten.engine.backends.choose import choose_backend
from hasten.engine.detokenizer import Detokenizer
from hasten.engine.early_exits import EarlyExits
from hasten.engine.engine import Engine
from hasten.engine.fit import Fit, fit_kv
from hasten.engine.groups import kv_groups
from hasten.engine.intake import Intake
from hasten.engine.options import EngineOptions
from hasten.engine.phases import Phases
from hasten.engine.progress import loading_bar, tell
from hasten.engine.speculation import Speculation
from hasten.engine.tokenizer import TextTokenizer
from hasten.kv.group import KvGroup
from hasten.kv.space import KvSpace
from hasten.models.load import LoadedModel, load_decoder
from hasten.sampling.sampler import Sampler
from hasten.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Assembly:
    engine: Engine
    intake: Intake
    tokenizer: TextTokenizer | None
    description: Mapping[str, Any]  # what runs, with which kernels, in how much memory


def assemble(model: str, options: EngineOptions) -> Assembly:
    """Load ``model`` (a folder, a hub id or ``demo``) and build its engine. Raises ``HastenError``."""
    folder = resolve(model, options.revision, quiet=not options.show_progress)
    phases = Phases()
    with phases.phase("kernels"):
        backend = choose_backend(options)
    with phases.phase("weights"), loading_bar(model, visible=options.show_progress) as progress:
        loaded = load_decoder(folder, dtype=options.dtype, ops=backend.ops, formats=backend.formats, progress=progress)
        speculation = Speculation.load(options, backend, loaded)
        exits = EarlyExits.load(options, backend, loaded, guess=speculation.allowed)
    spec = loaded.spec
    with phases.phase("tokenizer"):
        tokenizer = TextTokenizer.load(folder, spec.vocab_size)
    groups = kv_groups(spec)
    block_bytes = backend.block_bytes(groups, options.block_size, loaded.dtype) + speculation.block_bytes
    fit = _fit(options, groups, block_bytes, spec.max_positions)
    with phases.phase("program"):
        staged = backend.runner(
            loaded.decoder,
            groups,
            fit.num_blocks,
            options.block_size,
            loaded.dtype,
            options.max_num_batched_tokens,
            taps=speculation.taps,
        )
    space = KvSpace(groups, fit.num_blocks, options.block_size, retain=options.prefix_caching)
    with phases.phase("speculation"):
        costs = speculation.costs(fit, staged)
        shallow = exits.shallow(staged, space, options)
        drafter = speculation.drafter(fit, costs, shallow)
    scheduler = Scheduler(options.scheduler(fit.max_model_len), space)

    def detokenizer(request: Request) -> Detokenizer | None:
        if tokenizer is None:
            return None
        return tokenizer.detokenizer(request.params.skip_special_tokens, request.prompt_token_ids)

    runner = exits.runner(shallow or staged, own_threads=backend.own_threads)
    engine = Engine(runner, scheduler, detokenizer, Sampler(backend.chooser()), drafter, costs=costs)
    engine.stats.plain_step = None if costs is None else StepCosts(costs.measured).seconds
    intake = Intake(
        tokenizer=tokenizer,
        vocab_size=spec.vocab_size,
        max_model_len=fit.max_model_len,
        eos_token_ids=eos_token_ids(loaded, tokenizer),
        defaults=default_sampling_params(loaded.generation_config, folder),
        seeds=random.Random(options.seed),
        takes_priority=options.ordering == "priority",
        exits=exits,
    )
    tell(f"loaded {model} in {phases}", visible=options.show_progress)
    described = {**_describe(loaded, backend, fit, options), **speculation.describe(), "exits": options.exits}
    description = {"model": model, **described, "load_seconds": phases.seconds}
    return Assembly(engine, intake, tokenizer, description)


def _fit(options: EngineOptions, groups: Sequence[KvGroup], block_bytes: int, max_positions: int) -> Fit:
    return fit_kv(
        groups,
        block_size=options.block_size,
        block_bytes=block_bytes,
        max_positions=max_positions,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_step=options.max_num_batched_tokens,
        kv_cache_memory=options.kv_cache_memory,
    )


def _describe(loaded: LoadedModel, backend: Backend, fit: Fit, options: EngineOptions) -> dict[str, Any]:
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
