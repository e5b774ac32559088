"""``count``: multiply-adds and bytes of every module of a decoder, as formulas of its sizes.

Symbols: L layers · h hidden size · H heads · K key/value heads · d head dim · f intermediate size · V vocabulary. The tokens, the
rows of logits and the pairs of query and key are those of ``Work``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hasten.advise.formula import Formula
from hasten.advise.storage import LayerBits, Storage
from hasten.advise.work import AttentionWork, Window, Work
from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec
from hasten.models.spec import DecoderSpec

MODULES = (
    "embedding",
    "query, key, value",
    "scores",
    "weighted values",
    "attention output",
    "feed-forward up",
    "feed-forward down",
    "norms",
    "vocabulary",
)
NO_PRODUCT = Formula()


@dataclass(frozen=True, slots=True)
class ModuleCount:
    """What one kind of module does in all layers and all steps.

    Bytes are those of memory, if nothing stays in a cache.
    """

    name: str
    formula: Formula = NO_PRODUCT  # of the multiply-adds
    weight_bytes: float = 0.0  # read
    kv_read: float = 0.0
    kv_written: float = 0.0
    input_bytes: float = 0.0  # activations that are read
    output_bytes: float = 0.0  # and written

    @property
    def multiply_adds(self) -> int:
        return self.formula.value

    @property
    def flops(self) -> int:
        return 2 * self.formula.value

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.kv_read + self.kv_written + self.input_bytes + self.output_bytes

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: ModuleCount) -> ModuleCount:
        return ModuleCount(
            self.name,
            self.formula + other.formula,
            self.weight_bytes + other.weight_bytes,
            self.kv_read + other.kv_read,
            self.kv_written + other.kv_written,
            self.input_bytes + other.input_bytes,
            self.output_bytes + other.output_bytes,
        )


@dataclass(frozen=True, slots=True)
class Count:
    modules: tuple[ModuleCount, ...]  # in the order of ``MODULES``

    @property
    def total(self) -> ModuleCount:
        total = ModuleCount("total")
        for module in self.modules:
            total += module
        return total

    def module(self, name: str) -> ModuleCount:
        return self.modules[MODULES.index(name)]


def windows(spec: DecoderSpec) -> tuple[Window, ...]:
    """Return the distinct windows of the layers, in order of first use."""
    return tuple(dict.fromkeys(layer.attention.window for layer in spec.layers))


def count(spec: DecoderSpec, work: Work, storage: Storage, *, full_products: bool = False) -> Count:
    """Return what ``work`` takes. ``work`` has the windows of ``spec``.

    Scores and weighted values count the pairs that a query sees, and scores never reach memory. ``full_products``: they count all
    pairs, masked or not, and scores are written and read, as plain matrix products do.
    """
    counter = _Counter(spec, work, storage, full_products)
    total = {name: ModuleCount(name) for name in MODULES}
    for module in counter.modules():
        total[module.name] += module
    return Count(tuple(total.values()))


@dataclass(frozen=True, slots=True)
class _LayerKind:
    """What layers of equal cost have in common."""

    heads: int
    kv_heads: int
    head_dim: int
    window: Window
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    mlp: MlpSpec
    bits: LayerBits

    @classmethod
    def of(cls, layer: LayerSpec, bits: LayerBits) -> _LayerKind:
        a: AttentionSpec = layer.attention
        norm = a.qk_norm is not None
        return cls(a.num_heads, a.num_kv_heads, a.head_dim, a.window, a.qkv_bias, a.out_bias, norm, layer.mlp, bits)


@dataclass(frozen=True, slots=True)
class _Counter:
    spec: DecoderSpec
    work: Work
    storage: Storage
    full_products: bool

    def modules(self) -> Iterator[ModuleCount]:
        kinds: dict[_LayerKind, int] = {}
        for layer, bits in zip(self.spec.layers, self.storage.layers, strict=True):
            kind = _LayerKind.of(layer, bits)
            kinds[kind] = kinds.get(kind, 0) + 1
        yield self._embedding()
        for index, (kind, num_layers) in enumerate(kinds.items(), start=1):
            symbol = "L" if len(kinds) == 1 else f"L{index}"
            yield from self._projections(kind, (symbol, num_layers))
            yield from self._attention(kind, (symbol, num_layers))
            yield self._layer_norms(kind, num_layers)
        yield self._final_norm()
        yield self._vocabulary()

    def _embedding(self) -> ModuleCount:
        values = self.work.tokens * self.spec.hidden_size
        return ModuleCount(
            "embedding",
            weight_bytes=values * (self.storage.embedding + self.storage.positions) / 8,
            output_bytes=values * self.storage.activation_bytes,
        )

    def _projections(self, kind: _LayerKind, layers: tuple[str, int]) -> Iterator[ModuleCount]:
        size, attended, mlp = self.spec.hidden_size, kind.heads * kind.head_dim, kind.mlp
        hidden, dim = ("h", size), ("d", kind.head_dim)
        heads, up = ("H + 2·K", kind.heads + 2 * kind.kv_heads), 2 if mlp.gated else 1
        inner = ("f", mlp.intermediate_size)
        written = self.work.attention_of(kind.window).written_keys * self._kv_bytes(kind) * layers[1]
        qkv = self._matrix("query, key, value", layers, (hidden, heads, dim), size, kind.bits.qkv, kind.qkv_bias)
        yield qkv + ModuleCount(qkv.name, kv_written=written)
        yield self._matrix("attention output", layers, (("H", kind.heads), dim, hidden), attended, kind.bits.out, kind.out_bias)
        gate = (("2", 2),) if mlp.gated else ()
        yield self._matrix("feed-forward up", layers, (hidden, *gate, inner), size, kind.bits.up, mlp.bias, inner[1] * up)
        yield self._matrix("feed-forward down", layers, (inner, hidden), inner[1], kind.bits.down, mlp.bias)

    def _matrix(
        self,
        name: str,
        layers: tuple[str, int],
        sizes: tuple[tuple[str, int], ...],
        inputs: int,
        bits: float,
        bias: bool,
        outputs: int | None = None,
    ) -> ModuleCount:
        """Return the product of all tokens with one matrix per layer.

        The product of ``sizes`` is its number of weights.
        """
        num_layers, tokens, itemsize = layers[1], self.work.tokens, self.storage.activation_bytes
        weights = Formula.product(*sizes).value
        outputs = weights // inputs if outputs is None else outputs
        step_bytes = weights * bits / 8 + (outputs * self.storage.vector_bytes if bias else 0)
        return ModuleCount(
            name,
            Formula.product(layers, (self.work.symbols.tokens, tokens), *sizes),
            weight_bytes=self.work.steps * num_layers * step_bytes,
            input_bytes=num_layers * tokens * inputs * itemsize,
            output_bytes=num_layers * tokens * outputs * itemsize,
        )

    def _attention(self, kind: _LayerKind, layers: tuple[str, int]) -> Iterator[ModuleCount]:
        """Scores read keys, weighted values read values: half of the KV bytes each."""
        work, num_layers, itemsize = self.work.attention_of(kind.window), layers[1], self.storage.activation_bytes
        pairs, keys = self._pairs(work, kind.window)
        formula = Formula.product(layers, ("H", kind.heads), ("d", kind.head_dim), pairs)
        read = num_layers * keys * self._kv_bytes(kind) / 2
        values = num_layers * self.work.tokens * kind.heads * kind.head_dim * itemsize
        scores = num_layers * kind.heads * pairs[1] * itemsize if self.full_products else 0
        yield ModuleCount("scores", formula, kv_read=read, input_bytes=values, output_bytes=scores)
        yield ModuleCount("weighted values", formula, kv_read=read, input_bytes=scores, output_bytes=values)

    def _pairs(self, work: AttentionWork, window: Window) -> tuple[tuple[str, int], int]:
        """Return the pairs of query and key with their symbol, and the keys."""
        if self.full_products:
            return ("Pfull", work.full_pairs), work.full_keys
        return (self.work.symbols.pairs if window is None else f"P{window}", work.visible_pairs), work.visible_keys

    def _kv_bytes(self, kind: _LayerKind) -> float:
        return self.storage.kv_bytes[kind.kv_heads, kind.head_dim]

    def _layer_norms(self, kind: _LayerKind, num_layers: int) -> ModuleCount:
        """Two norms of the hidden state, and those of each query and key head."""
        heads = (kind.heads + kind.kv_heads) * kind.head_dim if kind.qk_norm else 0
        vectors = 2 * self.spec.hidden_size * self._norm_vectors + (2 * kind.head_dim if kind.qk_norm else 0) * self._norm_vectors
        values = num_layers * self.work.tokens * (2 * self.spec.hidden_size + heads) * self.storage.activation_bytes
        read = self.work.steps * num_layers * vectors * self.storage.vector_bytes
        return ModuleCount("norms", weight_bytes=read, input_bytes=values, output_bytes=values)

    @property
    def _norm_vectors(self) -> int:
        return 2 if self.spec.norm.kind == "layer" else 1

    def _final_norm(self) -> ModuleCount:
        size = self.spec.hidden_size
        values = self.work.logit_rows * size * self.storage.activation_bytes
        read = self.work.head_steps * size * self._norm_vectors * self.storage.vector_bytes
        return ModuleCount("norms", weight_bytes=read, input_bytes=values, output_bytes=values)

    def _vocabulary(self) -> ModuleCount:
        size, vocabulary, rows = self.spec.hidden_size, self.spec.vocab_size, self.work.logit_rows
        return ModuleCount(
            "vocabulary",
            Formula.product((self.work.symbols.rows, rows), ("h", size), ("V", vocabulary)),
            weight_bytes=self.work.head_steps * size * vocabulary * self.storage.lm_head / 8,
            input_bytes=rows * size * self.storage.activation_bytes,
            output_bytes=rows * vocabulary * self.storage.activation_bytes,
        )


def cache_saving(spec: DecoderSpec, cached: Work, uncached: Work, storage: Storage) -> float:
    """Return the share of the multiply-adds that a KV cache saves of the same request, from 0 to 1."""
    with_cache, without = (count(spec, work, storage).total.multiply_adds for work in (cached, uncached))
    return 1 - with_cache / without
