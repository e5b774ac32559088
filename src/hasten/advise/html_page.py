"""``write_page``: an HTML page that draws the decoder with its products, times and limits.

It loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from hasten.advise.count import ModuleCount
from hasten.advise.explanation import Explanation, Phase
from hasten.advise.page_style import STYLE
from hasten.advise.predict import ModuleTime
from hasten.advise.product_shapes import ProductShape, product_shapes
from hasten.advise.quantities import rate, scaled, seconds
from hasten.advise.roofline_svg import draw_roofline
from hasten.models.spec import DecoderSpec

BEFORE, LAST = ("embedding",), ("vocabulary",)
LAYER = ("query, key, value", "scores", "weighted values", "attention output", "feed-forward up", "feed-forward down")
WHAT = {
    "embedding": "One row of the table for each token.",
    "query, key, value": "Each token makes a query, a key and a value. The cache keeps the keys and values.",
    "scores": "Each query is compared with every key that it may see.",
    "weighted values": "The values are summed, weighted by the softmax of the scores.",
    "attention output": "The heads are joined, and added to the hidden state.",
    "feed-forward up": "Each token is widened, and passes through the activation.",
    "feed-forward down": "It is narrowed again, and added to the hidden state.",
    "vocabulary": "The last hidden state becomes one logit for each token of the vocabulary.",
}
LIMITS = {"memory": "waits for memory", "arithmetic": "is busy multiplying", "overhead": "is overhead"}


def write_page(explanations: Mapping[str, Explanation]) -> str:
    """Return the page of the first explanation; the others are compared with it."""
    explained = next(iter(explanations.values()))
    title = f"{explained.shape.name} on {explained.machine.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _summary(explained),
        "<h2>The decoder</h2>",
        "<p>A step reads each matrix once, however many tokens it computes. <i>Prefill</i> computes all tokens of the prompts in "
        "one step; a step of <i>decode</i> computes one token of each sequence. The bars are shares of the time of the step.</p>",
        _decoder(explained),
        "<h2>The roofline</h2>",
        "<p>Left of the corner a step waits for memory; right of it, it is busy multiplying. A larger batch moves decode to the "
        "right.</p>",
        f'<div class="wide">{draw_roofline(explanations, has_style=False)}</div>',
        "<h2>The formulas</h2>",
        *(_module_table(phase) for phase in explained.phases if phase.time is not None),
        "<p>b sequences · s prompt tokens · o output tokens · c tokens before a step · L layers · h hidden size · H heads · K "
        "key/value heads · d head dim · f intermediate size · V vocabulary. A FLOP is half a multiply-add.</p>",
        _comparison(explanations) if len(explanations) > 1 else "",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>{STYLE}'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _summary(explained: Explanation) -> str:
    lengths, memory, budget = explained.lengths, explained.memory, explained.budget
    facts = {
        "work": f"{lengths.batch:,} × ({lengths.prompt:,} + {lengths.output:,} tokens)",
        "weights": f"{scaled(memory.weights, 'B')}, {explained.shape.storage.name}",
        "KV cache": f"{scaled(memory.kv_per_token, 'B')} per token, {scaled(memory.kv_per_request, 'B')} per request",
        "TTFT": seconds(explained.ttft),
        "ITL": seconds(explained.itl),
        "output": f"{rate(explained.tokens_per_second)} tokens/s",
        "a KV cache saves": f"{explained.cache_saving:.1%} of the multiply-adds",
        "turns to arithmetic": "at no batch" if explained.turning_batch is None else f"at a batch of {explained.turning_batch:,}",
    }
    if explained.machine.memory is not None and explained.machine.memory < memory.weights:
        facts["fits"] = f"the weights do not fit in {scaled(explained.machine.memory, 'B')}"
    elif budget is not None:
        facts["at once"] = f"{budget.requests:,} such requests in {scaled(budget.memory, 'B')}"
        facts["longest context"] = f"{budget.longest_context:,} tokens"
    cards = (f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="facts">{"".join(cards)}</dl>'


def _decoder(explained: Explanation) -> str:
    spec = explained.shape.spec
    groups: dict[int | None, int] = {}
    for index, layer in enumerate(spec.layers):
        groups.setdefault(layer.attention.window, index)
    note = ""
    if len(groups) > 1:
        note = f'<p class="note">Shapes of layers with {_window(spec, 0)}. Other layers: {_others(spec, groups)}.</p>'
    modules = "".join(_block(explained, name) for name in LAYER)
    return (
        f'<div class="decoder">{"".join(_block(explained, name) for name in BEFORE)}'
        f'<section class="layer"><h3>{spec.num_layers} layers</h3>{note}{modules}</section>'
        f"{''.join(_block(explained, name) for name in LAST)}</div>"
    )


def _window(spec: DecoderSpec, layer: int) -> str:
    window = spec.layers[layer].attention.window
    return "full attention" if window is None else f"a window of {window:,} tokens"


def _others(spec: DecoderSpec, groups: Mapping[int | None, int]) -> str:
    return ", ".join(_window(spec, layer) for layer in list(groups.values())[1:])


def _block(explained: Explanation, name: str) -> str:
    rows = []
    for phase in (explained.prefill, explained.decode):
        assert phase.time is not None
        time = next(module for module in phase.time.modules if module.name == name)
        shape = _shapes(explained, phase).get(name)
        share = time.seconds / phase.time.seconds
        rows.append(_phase_row(phase, time, shape, share))
    table = f'<div class="wide"><table>{"".join(rows)}</table></div>'
    return f'<article class="module"><h4>{escape(name)}</h4><p>{WHAT[name]}</p>{table}</article>'


def _phase_row(phase: Phase, time: ModuleTime, shape: ProductShape | None, share: float) -> str:
    bar = f'<span class="bar {time.limit}" style="width:{100 * share:.1f}%"></span>'
    return (
        f"<tr><th>{phase.name}</th><td class='shape'>{'' if shape is None else shape.text()}</td>"
        f"<td>{seconds(time.seconds)}, {LIMITS[time.limit]}<div class='track' title='{share:.1%} of the step'>{bar}</div></td></tr>"
    )


def _shapes(explained: Explanation, phase: Phase) -> dict[str, ProductShape]:
    batch, tokens = explained.lengths.batch, phase.work.tokens // explained.lengths.batch
    context = phase.work.attention[0][1].full_pairs // phase.work.tokens - tokens  # pairs = tokens × (context + tokens)
    rows = phase.work.logit_rows
    return product_shapes(explained.shape.spec, 0, batch=batch, tokens=tokens, context=context, rows=rows)


def _module_table(phase: Phase) -> str:
    assert phase.time is not None
    head = "".join(f"<th>{name}</th>" for name in ("module", "multiply-adds", "", "weights", "keys, values", "time", "limit"))
    rows = [_cells(*pair) for pair in zip(phase.count.modules, phase.time.modules, strict=True)]
    title = "Prefill" if phase.name == "prefill" else "One step of decode"
    return f'<h3>{title}</h3><div class="wide"><table class="figures"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _cells(module: ModuleCount, time: ModuleTime) -> str:
    formula = f"{module.formula.symbols()} = {module.formula.numbers()}" if module.formula.terms else ""
    kv = module.kv_read + module.kv_written
    texts = (
        module.name,
        formula,
        scaled(module.multiply_adds) if formula else "",
        scaled(module.weight_bytes, "B") if module.weight_bytes else "",
        scaled(kv, "B") if kv else "",
        seconds(time.seconds),
        time.limit,
    )
    return f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"


def _comparison(explanations: Mapping[str, Explanation]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("change", "weights", "KV per request", "TTFT", "ITL", "tokens/s"))
    rows = []
    for name, one in explanations.items():
        texts = (
            name,
            scaled(one.memory.weights, "B"),
            scaled(one.memory.kv_per_request, "B"),
            seconds(one.ttft),
            seconds(one.itl),
            rate(one.tokens_per_second),
        )
        rows.append(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>")
    return f'<h2>Compared</h2><div class="wide"><table class="figures"><tr>{head}</tr>{"".join(rows)}</table></div>'
