"""Counts against a run of transformers whose every matrix product is recorded, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from tests.advise.counted_products import CountedProducts, Product
from tests.tiny_models import TINY, tiny_reference
from transformers import DynamicCache

from hasten.advise.count import Count, cache_saving, count, windows
from hasten.advise.storage import plain_storage, storage_of
from hasten.advise.work import Lengths, decode, prefill, request, step
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.layers.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from hasten.models.load import plan_decoder, read_spec
from hasten.models.spec import DecoderSpec
from hasten.runners.backends.choose import choose_backend

F32 = 4


def spec_of(tiny, name: str) -> DecoderSpec:
    return read_spec(Checkpoint.open(tiny(name)))


def recorded(model, steps: list[list[tuple[int, int]]]) -> list[Product]:
    """Run steps of (new, before) per sequence. Sequences of unlike lengths run one by one."""
    ids = torch.arange(5, 5 + 64).remainder(90)
    counted = CountedProducts(model)
    for sequences in steps:
        groups = {pair: sequences.count(pair) for pair in sequences}
        for (new, before), size in groups.items():
            cache = DynamicCache()
            with torch.no_grad():
                if before:
                    model(ids[:before].repeat(size, 1), past_key_values=cache, use_cache=True)
                with counted:
                    model(ids[before : before + new].repeat(size, 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [product for product in counted.products if product.inner > 1]  # others are rotary angles


def matrices(products: list[Product]) -> list[Product]:
    return [p for p in products if p.batch == 1]


def attentions(products: list[Product]) -> list[Product]:
    return [p for p in products if p.batch > 1]


def total(counted: Count, field: str, *names: str) -> float:
    return sum(getattr(counted.module(name), field) for name in names)


MATRICES = ("query, key, value", "attention output", "feed-forward up", "feed-forward down", "vocabulary")
FULL_NAMES = [name for name in TINY if "window" not in name]
RAGGED = [(9, 0), (4, 5), (1, 12)]


@pytest.mark.parametrize("name", FULL_NAMES)
@pytest.mark.parametrize("sequences", [[(9, 0)], [(1, 9)], [(9, 0)] * 8, [(1, 9)] * 8, RAGGED], ids=str)
def test_the_products_of_a_step_are_those_of_transformers(tiny, name, sequences):
    spec = spec_of(tiny, name)
    products = recorded(tiny_reference(name), [sequences])
    counted = count(spec, step(sequences, windows(spec)), plain_storage(spec, torch.float32), full_products=True)
    assert total(counted, "multiply_adds", *MATRICES) == sum(p.multiply_adds for p in matrices(products))
    assert total(counted, "multiply_adds", "scores", "weighted values") == sum(p.multiply_adds for p in attentions(products))
    assert counted.total.multiply_adds == sum(p.multiply_adds for p in products)


@pytest.mark.parametrize("name", FULL_NAMES)
def test_the_bytes_of_a_step_are_those_of_transformers(tiny, name):
    """The keys and values that transformers repeats for each query head are counted once."""
    spec, sequences = spec_of(tiny, name), [(9, 4)] * 3
    products = recorded(tiny_reference(name), [sequences])
    counted = count(spec, step(sequences, windows(spec)), plain_storage(spec, torch.float32), full_products=True)
    weights = sum(p.inner * p.columns + p.bias for p in matrices(products))
    assert total(counted, "weight_bytes", *MATRICES) == F32 * weights
    # Transformers multiplies separate q, k and v (and gate and up) where hasten reads their input once.
    inputs = {"gpt2": 4}.get(spec.model_type, 7)
    per_layer = [matrices(products)[i * inputs : (i + 1) * inputs] for i in range(spec.num_layers)]
    once = (0, 1, 2, 3) if spec.model_type == "gpt2" else (0, 3, 4, 6)
    read = sum(p.rows * p.inner for layer in per_layer for i, p in enumerate(layer) if i in once)
    head = matrices(products)[-1]
    assert total(counted, "input_bytes", *MATRICES) == F32 * (read + head.rows * head.inner)
    assert total(counted, "output_bytes", *MATRICES) == F32 * sum(p.rows * p.columns for p in matrices(products))
    attention = spec.layers[0].attention
    groups = attention.num_heads // attention.num_kv_heads
    scores, weighted = attentions(products)[::2], attentions(products)[1::2]
    kv_read = sum(p.batch * p.inner * p.columns for p in (*scores, *weighted)) // groups
    assert total(counted, "kv_read", "scores", "weighted values") == F32 * kv_read
    assert counted.module("scores").output_bytes == F32 * sum(p.batch * p.rows * p.columns for p in scores)
    assert counted.module("weighted values").input_bytes == F32 * sum(p.batch * p.rows * p.inner for p in weighted)
    queries, outputs = counted.module("scores").input_bytes, counted.module("weighted values").output_bytes
    assert queries == F32 * sum(p.batch * p.rows * p.inner for p in scores)
    assert outputs == F32 * sum(p.batch * p.rows * p.columns for p in weighted)
    written = sum(new for new, _ in sequences) * spec.num_layers * 2 * attention.num_kv_heads * attention.head_dim
    assert counted.total.kv_written == F32 * written


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-tied", "qwen3-gqa", "mistral-full", "gpt2"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("cache", [True, False])
def test_a_request_is_a_run_of_transformers(tiny, name, batch, cache):
    lengths = Lengths(prompt=6, output=4, batch=batch)
    steps = [[(6, 0)] * batch, *([(1, 6 + i) if cache else (7 + i, 0)] * batch for i in range(3))]
    products = recorded(tiny_reference(name), steps)
    spec = spec_of(tiny, name)
    counted = count(spec, request(lengths, cache=cache), plain_storage(spec, torch.float32), full_products=True)
    assert counted.total.multiply_adds == sum(p.multiply_adds for p in products)
    assert total(counted, "weight_bytes", *MATRICES) == F32 * sum(p.inner * p.columns + p.bias for p in matrices(products))


@pytest.mark.parametrize("name", [name for name in TINY if "window" in name])
@pytest.mark.parametrize("sequences", [[(20, 0)], [(1, 30)] * 8, [(20, 0), (3, 17), (1, 2)]], ids=str)
def test_a_window_counts_the_pairs_of_the_mask_of_transformers(tiny, name, sequences):
    """Eager attention computes all pairs and masks them: the visible ones are those with a weight above zero."""
    spec, model = spec_of(tiny, name), tiny_reference(name)
    visible = 0
    for new, before in sequences:
        ids = torch.arange(new + before).remainder(90)[None]
        with torch.no_grad():
            weights = model(ids, output_attentions=True).attentions
        visible += sum(int((layer[:, :, before:] > 0).sum()) * spec.layers[0].attention.head_dim for layer in weights)
    counted = count(spec, step(sequences, windows(spec)), plain_storage(spec, torch.float32))
    assert counted.module("scores").multiply_adds == counted.module("weighted values").multiply_adds == visible
    assert counted.module("scores").output_bytes == 0  # scores stay where they are computed
    products = recorded(model, [[(20, 0)] * 2])
    full = count(spec, step([(20, 0)] * 2, windows(spec)), plain_storage(spec, torch.float32), full_products=True)
    assert full.total.multiply_adds == sum(p.multiply_adds for p in products)


def plain_spec(hidden: int, layers: int, vocabulary: int = 1000) -> DecoderSpec:
    """Return GPT-2's decoder with a feed-forward of four times the hidden size."""
    attention = AttentionSpec(8, 8, hidden // 8, scale=1.0)
    layer = LayerSpec(attention, MlpSpec(4 * hidden, "gelu", gated=False))
    norm = NormSpec("layer", 1e-5)
    return DecoderSpec(
        model_type="gpt2",
        vocab_size=vocabulary,
        hidden_size=hidden,
        max_positions=4096,
        layers=(layer,) * layers,
        norm=norm,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize(("b", "s", "h", "layers"), [(1, 128, 64, 1), (8, 512, 768, 12), (3, 1, 1024, 5)])
def test_a_layer_takes_the_flops_of_the_lecture(b, s, h, layers):
    """24·b·s·h² + 4·b·s²·h (Narayanan et al., 2021, arXiv 2104.04473, forward pass), and 2·b·s·h·V for all logits."""
    spec = plain_spec(h, layers)
    work = step([(s, 0)] * b, logit_rows=b * s)
    counted = count(spec, work, plain_storage(spec, torch.bfloat16), full_products=True)
    assert counted.total.flops == layers * (24 * b * s * h * h + 4 * b * s * s * h) + 2 * b * s * h * 1000
    assert counted.module("query, key, value").flops == layers * 6 * b * s * h * h
    assert counted.module("feed-forward up").flops == counted.module("feed-forward down").flops == layers * 8 * b * s * h * h


def test_a_cache_turns_the_square_of_a_token_into_a_line():
    """Without a cache a token costs as much as the prompt before it; with one, 24·h² + 4·s·h a layer."""
    spec, s, h = plain_spec(64, 2), 500, 64
    storage = plain_storage(spec, torch.bfloat16)
    cached = count(spec, decode(1, s - 1), storage, full_products=True)
    uncached = count(spec, step([(s, 0)], cache=False), storage, full_products=True)
    head = 2 * h * 1000
    assert cached.total.flops - head == 2 * (24 * h * h + 4 * s * h)
    assert uncached.total.flops - head == s * (cached.total.flops - head)
    lengths = Lengths(prompt=s, output=2)
    saving = cache_saving(spec, request(lengths), request(lengths, cache=False), storage)
    assert 0.49 < saving < 0.5  # the second of two tokens is nearly free


@pytest.mark.parametrize("name", ["gpt2", "qwen3-mixed-window", "llama-mqa-bias", "qwen2-tied"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4-weight-only"])
def test_the_weights_of_a_step_are_those_that_hasten_holds(tiny, name, quantization):
    """A step reads every weight once, but of the tables only the rows of its tokens."""
    checkpoint = Checkpoint.open(tiny(name))
    backend = choose_backend(EngineOptions(quantization=quantization, dtype="bfloat16"), read_spec(checkpoint))
    plan = plan_decoder(checkpoint, dtype="bfloat16", ops=backend.ops, formats=backend.formats)
    spec, decoder = plan.spec, plan.decoder
    storage = storage_of(decoder, plain_storage(spec, torch.bfloat16).kv_bytes)
    counted = count(spec, decode(1, 5, windows(spec)), storage)
    read = sum(module.weight_bytes for module in counted.modules if module.name != "embedding")
    tables = 0.0 if decoder.positions is None else spec.max_positions * spec.hidden_size * storage.positions / 8
    if not spec.tie_word_embeddings:
        tables += spec.vocab_size * spec.hidden_size * storage.embedding / 8
    assert read + tables == pytest.approx(plan.weight_bytes, abs=1)
    assert storage.weight_bytes == plan.weight_bytes


def test_formulas_show_their_symbols_and_numbers(tiny):
    spec = spec_of(tiny, "llama-gqa")
    counted = count(spec, prefill(2, 10), plain_storage(spec, torch.float32))
    formula = counted.module("query, key, value").formula
    assert (formula.symbols(), formula.numbers()) == ("L·b·s·h·(H + 2·K)·d", "3·20·64·8·16")
    assert counted.module("scores").formula.symbols() == "L·H·d·b·s·(s + 1)/2"
    assert counted.module("feed-forward up").formula.symbols() == "L·b·s·h·2·f"
    assert counted.module("vocabulary").formula.numbers() == "2·64·101"
    assert counted.module("norms").formula.symbols() == "0"
    mixed = spec_of(tiny, "qwen3-mixed-window")
    counted = count(mixed, decode(1, 99, windows(mixed)), plain_storage(mixed, torch.float32))
    assert counted.module("scores").formula.symbols() == "L1·H·d·P8 + L2·H·d·b·(c + 1)"
    assert counted.module("scores").formula.numbers() == "2·4·16·8 + 2·4·16·100"
