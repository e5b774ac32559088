"""``product_shapes``: the sizes of every matrix product of one layer and of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class ProductShape:
    """[rows × inner] · [inner × columns], ``times`` in each layer."""

    rows: int
    inner: int
    columns: int
    times: int = 1

    @property
    def multiply_adds(self) -> int:
        return self.times * self.rows * self.inner * self.columns

    def text(self) -> str:
        text = f"[{self.rows:,} × {self.inner:,}] · [{self.inner:,} × {self.columns:,}] → [{self.rows:,} × {self.columns:,}]"
        return text if self.times == 1 else f"{self.times:,} × {text}"


def product_shapes(spec: DecoderSpec, layer: int, *, batch: int, tokens: int, context: int, rows: int) -> dict[str, ProductShape]:
    """Return the products by module, as names of ``count``.

    ``tokens`` new ones of each sequence after ``context`` others; ``rows`` of logits. Scores are computed for each sequence and
    head; within a window only for the keys that one of the queries sees.
    """
    attention, mlp = spec.layers[layer].attention, spec.layers[layer].mlp
    size, total, dim = spec.hidden_size, batch * tokens, attention.head_dim
    window = attention.window
    keys = tokens + (context if window is None else min(context, window - 1))
    heads = batch * attention.num_heads
    return {
        "query, key, value": ProductShape(total, size, attention.qkv_size),
        "scores": ProductShape(tokens, dim, keys, heads),
        "weighted values": ProductShape(tokens, keys, dim, heads),
        "attention output": ProductShape(total, attention.q_size, size),
        "feed-forward up": ProductShape(total, size, mlp.intermediate_size * (2 if mlp.gated else 1)),
        "feed-forward down": ProductShape(total, mlp.intermediate_size, size),
        "vocabulary": ProductShape(rows, size, spec.vocab_size),
    }
