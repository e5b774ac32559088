"""``LoadedDrafter``: a draft model, Medusa heads or an EAGLE-3 head, loaded but not yet built."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hasten.checkpoints.formats.draft_ids import read_draft_ids
from hasten.checkpoints.formats.medusa import ORIGINAL, read_medusa
from hasten.checkpoints.hub import resolve, resolve_heads
from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.shards import SINGLE, read_shards
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.engine.kv_cache_sizing import kv_groups
from hasten.entrypoints.wiring.check_quantization import check_draft_quantization
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.layers.eagle import LAYER_INDEX
from hasten.layers.layer_context import LayerContext
from hasten.models.eagle import load_eagle
from hasten.models.load import DecoderPlan, LoadedModel, check_draft_vocabulary, plan_decoder, weight_dtype
from hasten.ops.cpu.memory import available_bytes
from hasten.ops.torch.inference import inference
from hasten.runners.backends.base import Backend
from hasten.runners.base import KvCacheConfig
from hasten.sampling.chain import Chain
from hasten.sampling.sampler import Sampler
from hasten.speculative.cost_model import CostModel
from hasten.speculative.draft_vocabulary import DraftVocabulary
from hasten.speculative.drafters.base import ModelDrafter
from hasten.speculative.drafters.draft_model import DraftModel
from hasten.speculative.drafters.eagle import MAX_PENDING, TOTAL_PENDING, Eagle
from hasten.speculative.drafters.medusa import Medusa

MAX_EAGLE_TOKENS = 1024  # that an EAGLE head reads in one call
MIN_PENDING = 64  # tokens whose hidden states an EAGLE head keeps on the smallest machine
STATE_SHARE = 16  # drafters' states take at most this part of the free memory


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter whose weights are loaded. ``build`` needs the number of KV blocks, which comes later."""

    name: str  # as in ``EngineOptions.speculative_method``
    folder: Path
    build: Callable[[int, CostModel], ModelDrafter]  # (KV blocks, costs of the steps that verify); raises ``CapacityError``
    block_bytes: int = 0  # of one block of its own KV cache
    aux_layer_indices: tuple[int, ...] = ()  # target layers, from 0, whose hidden states it reads
    state_bytes: int = 0  # of memory that it fills while it runs, beside the KV cache


def max_draft_tokens(options: EngineOptions) -> dict[str, int]:
    """Return the drafters' ``num_tokens`` argument; empty leaves each drafter its own default."""
    return {} if options.num_speculative_tokens is None else {"num_tokens": options.num_speculative_tokens}


def plan_draft_model(options: EngineOptions, backend: Backend) -> DecoderPlan | None:
    """Return the draft model that the options name, before its weights are read. None if they name none.

    Raises ``CheckpointError`` for faulty files, and ``InvalidOption`` if ``draft_quantization`` would quantise it again.
    """
    if options.draft_model is None:
        return None
    checkpoint = Checkpoint.open(resolve(options.draft_model, None, quiet=not options.show_progress))
    check_draft_quantization(options, checkpoint)
    return plan_decoder(checkpoint, dtype=options.dtype, ops=backend.ops, formats=backend.draft_formats)


def drafter_weight_bytes(options: EngineOptions, backend: Backend, draft_plan: DecoderPlan | None) -> int:
    """Return the memory that the weights of the draft model, or of draft heads, and of exits will take.

    It reads the headers of heads and exits. What is not valid counts nothing: loading it raises the error.
    """
    total = 0.0 if draft_plan is None else float(draft_plan.weight_bytes)
    for name in filter(None, (options.draft_heads, options.exits)):
        folder = resolve_heads(name, quiet=not options.show_progress)
        with suppress(CheckpointError):
            for entry in read_shards(folder, ORIGINAL if os.path.isfile(folder / ORIGINAL) else SINGLE).values():
                if (dtype := weight_dtype(entry, options.dtype)) is not None:
                    bits = backend.draft_formats(dtype).on_meta().projection(1, 1).bits
                    total += math.prod(entry.shape) * bits / 8
    return int(total)


def load_draft_model(plan: DecoderPlan, options: EngineOptions, backend: Backend, target: LoadedModel) -> LoadedDrafter:
    """Load the draft model ``plan``.

    Raises ``InvalidOption`` for another vocabulary than the target's, and ``CheckpointError`` for faulty files.
    """
    remedy = "Take a smaller model of the same family, or train one: hasten train draft"
    check_draft_vocabulary(plan.spec, str(options.draft_model), target.spec.vocab_size, remedy)
    model, folder = plan.load(), plan.checkpoint.folder
    draft_ids, vocabulary = read_draft_ids(folder, model.spec.vocab_size), None
    if draft_ids is not None:  # the lm_head keeps only the rows of the draft vocabulary
        layer_context = LayerContext(backend.ops, backend.draft_formats(model.dtype), model.dtype)
        model.decoder.lm_head = model.decoder.lm_head.slice_rows(draft_ids, layer_context)
        vocabulary = DraftVocabulary(draft_ids, model.spec.vocab_size)
    groups, block_size = kv_groups(model.spec), options.block_size

    def build(num_blocks: int, costs: CostModel) -> DraftModel:
        kv = KvCacheConfig(groups, num_blocks, block_size, model.dtype)
        return DraftModel(
            backend.make_runner(model.decoder, kv, options.max_num_batched_tokens),
            KvCacheManager(groups, num_blocks, block_size, keep_cached=options.prefix_caching),
            Sampler(backend.token_selector(Chain())),
            costs=costs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_positions=model.spec.max_positions,
            vocabulary=vocabulary,
            **max_draft_tokens(options),
        )

    return LoadedDrafter("draft_model", folder, build, backend.block_bytes(groups, block_size, model.dtype))


def load_draft_heads(name: str, options: EngineOptions, backend: Backend, target: LoadedModel) -> LoadedDrafter:
    """Load the Medusa or EAGLE-3 heads in the folder or hub id ``name``.

    Raises ``InvalidOption`` for heads that ``speculative_method`` excludes, and ``CheckpointError`` for heads of another model.
    """
    folder = resolve_heads(name, quiet=not options.show_progress)
    load = _load_eagle if _is_eagle(folder) else _load_medusa
    heads = load(folder, options, backend, target)
    if options.resolved_speculative_method not in ("auto", heads.name):
        raise InvalidOption(
            f"the draft heads in {name} are of another kind",
            got=heads.name,
            allowed=options.speculative_method,
            remedy=f"Use speculative_method={heads.name!r}, or {options.speculative_method} heads",
        )
    return heads


def _is_eagle(folder: Path) -> bool:
    """Return False if config.json is unreadable: ``read_medusa`` then raises the error."""
    try:
        config = read_json(folder / "config.json")
    except CheckpointError:
        return False
    return "speculators_model_type" in config or "draft_vocab_size" in config


def _load_medusa(folder: Path, options: EngineOptions, backend: Backend, target: LoadedModel) -> LoadedDrafter:
    spec, decoder = target.spec, target.decoder
    layer_context = LayerContext(backend.ops, backend.draft_formats(target.dtype), target.dtype)
    heads = read_medusa(folder, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size, layer_context=layer_context).heads
    lm_head, layer = decoder.lm_head, spec.num_layers - 1
    if heads.spec.lm_head == "model" and heads.token_map is not None:
        lm_head = lm_head.slice_rows(heads.token_map, layer_context)

    @inference()
    def logits(hidden_RE: Tensor) -> Tensor:
        logits_HRV: Tensor = heads(decoder.norm(hidden_RE.to(target.dtype)), lm_head)
        return logits_HRV

    def build(num_blocks: int, costs: CostModel) -> Medusa:
        return Medusa(logits, heads.token_ids, costs=costs, layer=layer, **max_draft_tokens(options))

    return LoadedDrafter("medusa", folder, build, aux_layer_indices=(layer,))


def _load_eagle(folder: Path, options: EngineOptions, backend: Backend, target: LoadedModel) -> LoadedDrafter:
    head = load_eagle(folder, target.decoder, formats=backend.draft_formats(target.dtype)).head
    attention, aux_layer_indices = head.spec.layer.attention, head.spec.aux_layer_indices
    groups, block_size = (KvGroup((LAYER_INDEX,), attention.num_kv_heads, attention.head_dim),), options.block_size
    state_bytes = 4 * target.spec.hidden_size * len(aux_layer_indices)  # of a pending token, in float32
    max_pending = max(MIN_PENDING, min(MAX_PENDING, available_bytes() // STATE_SHARE // (TOTAL_PENDING * state_bytes)))

    def build(num_blocks: int, costs: CostModel) -> Eagle:
        return Eagle(
            backend.make_eagle_runner(head, KvCacheConfig(groups, num_blocks, block_size, target.dtype), MAX_EAGLE_TOKENS),
            KvCacheManager(groups, num_blocks, block_size, keep_cached=False),
            costs=costs,
            aux_layer_indices=aux_layer_indices,
            max_positions=target.spec.max_positions,
            max_pending=max_pending,
            **max_draft_tokens(options),
        )

    return LoadedDrafter(
        "eagle",
        folder,
        build,
        backend.block_bytes(groups, block_size, target.dtype),
        aux_layer_indices,
        (TOTAL_PENDING * max_pending + options.max_num_batched_tokens) * state_bytes,
    )
