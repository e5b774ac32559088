"""Pins by hand: whether a prompt can be pinned, the pin that it got, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hasten.core.errors import HastenError, InvalidRequest, show
from hasten.core.output import RequestOutput
from hasten.core.request import Request
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt

if TYPE_CHECKING:
    from hasten.engine.engine import Engine


def check_pinnable(kv: KvCacheManager, num_tokens: int) -> None:
    """Raise ``InvalidRequest`` if a prompt of so many tokens can never be pinned."""
    num_blocks, size = num_tokens // kv.block_size, kv.block_size
    if num_blocks == 0:
        raise InvalidRequest(
            "the prompt is too short to be pinned", got=f"{num_tokens} tokens", allowed=f"at least a block of {size} tokens"
        )
    if not kv.pins.may_pin(num_blocks):
        raise InvalidRequest(
            "the prompt exceeds what pins may hold",
            got=f"{num_tokens} tokens, {num_blocks} blocks of {size} tokens",
            allowed=f"max_pinned_share of {kv.num_blocks} blocks",
            remedy="Shorten the prompt, or raise max_pinned_share, max_pins or kv_cache_memory",
        )


def pin_facts(engine: Engine, request: Request, output: RequestOutput) -> dict[str, Any]:
    """Return the pin that a request has set, as plain data. Raises ``HastenError`` if it has set none."""
    if output.error is not None:
        raise HastenError("the prompt could not be computed", got=output.error)
    pins = engine.scheduler.kv.pins
    block_hash = _pinned_prefix(engine.scheduler.kv, request.prompt_token_ids, request.cache_salt)
    pin = None if block_hash is None else pins.get(block_hash)
    if pin is None:
        raise HastenError("other pins or requests took the place of the pin", remedy="Pin fewer prefixes, or raise kv_cache_memory")
    return pins.describe_pin(pin)


def unpin(engine: Engine, token_ids: Sequence[int] | None, tenant: str) -> int:
    """End the pin of a tenant's prompt, or all pins for ``token_ids`` None; return their number."""
    kv = engine.scheduler.kv
    kv.pins.advance(engine.clock())
    if token_ids is not None:
        block_hash = _pinned_prefix(kv, token_ids, tenant)
        return 0 if block_hash is None else kv.pins.unpin(block_hash)
    if tenant:
        raise InvalidRequest(
            "without a prompt, the pins of one tenant cannot be told from those of others",
            got=f"cache_salt={show(tenant)}",
            remedy="Give the prompt, or leave cache_salt out to end all pins",
        )
    return kv.pins.unpin()


def _pinned_prefix(kv: KvCacheManager, token_ids: Sequence[int], tenant: str) -> bytes | None:
    """Return the block hash that names the pin of a prompt that all layers compute, or None."""
    return kv.prefix_hash(cache_salt(tenant, None), token_ids)
