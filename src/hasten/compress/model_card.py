"""``write_model_card``: the README.md of a compressed model, with its recipe and its measured figures."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.compress.new_folder import writing_error
from hasten.core.errors import printable
from hasten.quality.intervals import Interval, mean_interval
from hasten.quality.quality import Quality

FILE = "README.md"
NOT_MEASURED = "not measured"
DENSE = "safetensors"  # the format of weights that are not quantised
BATCH = 8  # requests of the second figure of speed
# How a model comes from its base model, in the hub's words.
QUANTIZED, FINETUNE = "quantized", "finetune"
# What transformers needs beside itself to load a format.
PACKAGES = {
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel optimum",
    "awq": "gptqmodel accelerate",
    "fp8": "accelerate",
}

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationText:
    """The sequences of ``calibration_ids``."""

    name: str  # of the file, without its folder
    sha256: str  # ``calibration_digest``
    samples: int
    seq_len: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The model against the one that it was made from. None: not measured."""

    bytes_before: int | None = None  # of the weights
    bytes_after: int | None = None
    quality: Quality | None = None
    text: str | None = None  # on which ``quality`` was measured
    other_texts: Mapping[str, Quality] = field(default_factory=dict)  # the quality on further texts, by their names
    parameters_before: int | None = None
    parameters_after: int | None = None
    tokens_per_second_before: float | None = None  # decoding, batch 1
    tokens_per_second_after: float | None = None
    batch_tokens_per_second_before: float | None = None  # decoding, batch ``BATCH``
    batch_tokens_per_second_after: float | None = None
    machine: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    name: str  # of the folder
    base_model: str | None  # on the Hugging Face hub; None: unknown
    relation: str = QUANTIZED  # to the base model; FINETUNE: pruned or distilled
    license: Mapping[str, str | list[str]] = field(default_factory=dict)  # ``source_license``
    method: str
    format: str  # of ``QuantizeOptions``, or ``DENSE``
    bits: int | None  # None: not the same for all matrices
    group_size: int | None = None  # None: not in groups
    options: Mapping[str, object] = field(default_factory=dict)  # the other ones of the recipe
    calibration: CalibrationText | None = None  # None: without
    notes: Sequence[str] = ()  # sentences below the recipe
    figures: Figures = field(default_factory=Figures)


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Write ``README.md``, or replace it. A crash leaves the file that was there before.

    Raises ``CapacityError`` for a full disk, and ``InvalidOption`` for a folder that cannot be written.
    """
    partial = folder / f"{FILE}.partial"
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(card_text(card))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise writing_error(folder / FILE, error) from None


def card_text(card: ModelCard) -> str:
    """Return the page in Markdown, with YAML front matter as the hub reads it."""
    figures = card.figures
    measured_on = [f"Quality on {_plain(figures.text)}."] if figures.text and figures.quality else []
    measured_on += [f"Speed on {_plain(figures.machine)}."] if figures.machine else []
    base_model = None if card.base_model is None else _plain(card.base_model)
    origin = "another model" if base_model is None else f"[{base_model}](https://huggingface.co/{base_model})"
    lines = [
        "---",
        _front_matter(card),
        "---",
        "",
        f"# {_plain(card.name)}",
        "",
        f"Made from {origin} with hasten {__version__}.",
        "",
        "## Recipe",
        "",
        *_table(("", ""), list(_recipe(card))),
        "",
        *(line for note in card.notes for line in (_plain(note), "")),
        "## Against the original",
        "",
        *_table(("", "original", "this model"), list(_figures(figures))),
        *(["", " ".join(measured_on)] if measured_on else []),
        "",
        "## Run it",
        "",
        *_commands(card),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(card: ModelCard) -> str:
    from huggingface_hub import ModelCardData

    tags = ["hasten", card.method]
    if card.format != DENSE:
        tags += [card.format, *([] if card.bits is None else [f"{card.bits}-bit"])]
    values: dict[str, Any] = {
        "base_model": card.base_model,
        "base_model_relation": None if card.base_model is None else card.relation,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(tags)),
        **card.license,
    }
    return str(ModelCardData(**values).to_yaml())


def _recipe(card: ModelCard) -> Iterator[Row]:
    yield "method", card.method
    yield "format", card.format
    if card.bits is not None or card.format != DENSE:
        yield "bits", "mixed" if card.bits is None else str(card.bits)
    if card.group_size is not None:
        yield "group size", str(card.group_size)
    for name, value in card.options.items():
        yield name.replace("_", " "), str(value)
    text = card.calibration
    if text is None:
        if card.relation == QUANTIZED:
            yield "calibration", "none"
        return
    yield "calibration text", text.name
    yield "calibration sequences", f"{text.samples:,} of {text.seq_len:,} tokens, seed {text.seed}"
    yield "SHA-256 of the sequences", text.sha256


def _figures(figures: Figures) -> Iterator[Row]:
    if figures.parameters_before is not None or figures.parameters_after is not None:
        yield "parameters", _count(figures.parameters_before), _count(figures.parameters_after)
    yield "weights, bytes", _count(figures.bytes_before), _count(figures.bytes_after)
    yield from _quality(figures.quality, "")
    for text, quality in figures.other_texts.items():
        yield from _quality(quality, f", {text}")
    yield "tokens per second, batch 1", _rate(figures.tokens_per_second_before), _rate(figures.tokens_per_second_after)
    before, after = figures.batch_tokens_per_second_before, figures.batch_tokens_per_second_after
    if before is not None or after is not None:
        yield f"tokens per second, batch {BATCH}", _rate(before), _rate(after)


def _quality(quality: Quality | None, suffix: str) -> Iterator[Row]:
    """Yield the rows of one text; ``suffix`` tells texts apart."""
    if quality is None:
        yield "KL divergence, nats per token", "", NOT_MEASURED
        yield "same most likely token", "", NOT_MEASURED
        yield "perplexity", NOT_MEASURED, NOT_MEASURED
        return
    divergence = _with_interval(quality.kl_mean, quality.kl_interval, "{:.4g}")
    top1 = mean_interval(quality.top1_agreement, quality.top1_standard_error, quality.num_windows)
    agreement = _with_interval(quality.top1_agreement, top1 and (top1[0], min(top1[1], 1.0)), "{:.2%}")
    yield f"KL divergence, nats per token{suffix}", "", divergence
    yield f"same most likely token{suffix}", "", agreement
    yield f"perplexity{suffix}", f"{quality.reference_perplexity:.4f}", f"{quality.candidate_perplexity:.4f}"
    yield f"tokens scored{suffix}", "", f"{quality.num_tokens:,}"


def _with_interval(mean: float, interval: Interval | None, template: str) -> str:
    """Return a mean with its 95 % interval; a single window has none."""
    if interval is None:
        return template.format(mean)
    low, high = interval
    return f"{template.format(mean)} (95 % interval {template.format(max(low, 0.0))} to {template.format(high)})"


def _count(number: int | None) -> str:
    return NOT_MEASURED if number is None else f"{number:,}"


def _rate(tokens_per_second: float | None) -> str:
    return NOT_MEASURED if tokens_per_second is None else f"{tokens_per_second:.1f}"


def _commands(card: ModelCard) -> Iterator[str]:
    name = printable(f"./{card.name}")
    folder, literal = shlex.quote(name), json.dumps(name, ensure_ascii=False)
    packages = PACKAGES.get(card.format)
    needs = f", with the package{'s' if ' ' in packages else ''} {packages.replace(' ', ' and ')}" if packages else ""
    yield from ("```sh", f'hasten generate {folder} "The capital of France is" --max-tokens 32', "```", "")
    yield from (f"In transformers{needs}:", "", "```python")
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'model = AutoModelForCausalLM.from_pretrained({literal}, dtype="auto")'
    yield f"tokenizer = AutoTokenizer.from_pretrained({f'./{card.name}'!r})"
    yield from ("```", "", "In vLLM:", "", "```sh", f"vllm serve {folder}", "```")


def _table(header: Row, rows: Sequence[Row]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Return the text in one line that cannot begin HTML."""
    return printable(text).replace("<", "&lt;")
