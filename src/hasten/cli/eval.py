"""``hasten eval``: what a setting costs in quality, beside the same checkpoint in float32."""

from __future__ import annotations

import json as encoder
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.engine_options import ENGINE_OF_READING, Debug, ModelArgument, ModelOption, one_model
from hasten.cli.options import Given, with_options
from hasten.cli.print_table import print_table
from hasten.core.errors import InvalidOption
from hasten.quality.window import NUM_TOKENS, WINDOW

if TYPE_CHECKING:
    from hasten.entrypoints.evaluation import Evaluation
    from hasten.quality.quality import Quality


@with_options(ENGINE_OF_READING)
def evaluate(
    name: ModelArgument = None,
    model: ModelOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help='The text: UTF-8, or .jsonl with a "text" per line. Without it: the shipped one.'
        ),
    ] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option("--token-ids", metavar="FILE", help="Token ids instead of a text, one sequence per line."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="MODEL", help="Compare with this model in float32 instead of MODEL itself.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="TOKENS", help=f"Read the text in windows of this many tokens; {WINDOW} if left out."),
    ] = None,
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", metavar="TOKENS", help="Score at most this many, spread evenly over the text.")
    ] = NUM_TOKENS,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the result as JSON too; - is standard output, instead of the table."),
    ] = None,
    debug: Debug = False,
    *,
    engine: Given,
) -> None:
    """ConfidenceMeasure what options such as --dtype cost in quality: KL divergence, top-1 agreement and perplexity against float32."""
    from hasten.entrypoints.evaluation import evaluate as run

    chosen = one_model(name, model)
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise InvalidOption(f"{json} cannot be written", remedy="Give a file in a folder that is there")
    found = run(
        chosen,
        {"show_progress": True, **engine},
        reference=reference,
        text=text,
        token_ids=token_ids,
        window=window,
        num_tokens=num_tokens,
    )
    if json is not None:
        _write(json, encoder.dumps(_report(found)))
    if json is None or str(json) != "-":
        _show(found)


def _report(found: Evaluation) -> dict[str, Any]:
    """The result with all that is needed to repeat it."""

    from hasten.bench.provenance import provenance

    return {
        **provenance("quality"),
        **found.as_dict(),
    }


def _write(file: Path, line: str) -> None:
    if str(file) == "-":
        print(line)
        return
    try:
        file.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{file} cannot be written", got=error.strerror, remedy="Give another file") from None


def _show(found: Evaluation) -> None:
    quality = found.quality
    for side, about in (("reference", found.reference), ("candidate", found.candidate)):
        print(f"{side}: {about['model']}, {_storage(about)}, {about['kernels']}", file=sys.stderr)
    several = "" if quality.num_windows == 1 else "s"
    cut = f"{quality.num_windows:,} window{several} of up to {found.window:,}"
    print(f"{found.text}: {quality.num_tokens:,} tokens in {cut}", file=sys.stderr)
    print_table(("", "VALUE", "SPREAD"), _divergence(quality))
    print()
    print_table(("", "REFERENCE", "CANDIDATE"), _fit(quality))


def _storage(about: Mapping[str, Any]) -> str:
    """How weights and KV cache are held."""
    return f"weights {about.get('quantization') or about['dtype']}, KV cache {about.get('kv_cache_dtype') or about['dtype']}"


def _divergence(quality: Quality) -> list[tuple[str, str, str]]:
    tail = f"median {quality.kl_median:.3g}, p99 {quality.kl_p99:.3g}, max {quality.kl_max:.3g}"
    return [
        ("mean KL, nats", f"{quality.kl_mean:.3g}", f"{_error(quality.kl_standard_error)}{tail}"),
        ("top-1 agreement", f"{quality.top1_agreement:.2%}", _error(quality.top1_standard_error, percent=True).rstrip(", ")),
    ]


def _error(error: float | None, *, percent: bool = False) -> str:
    """± one standard error; nothing of a single window, which tells none."""
    if error is None:
        return ""
    return f"± {error * 100:.2g} points, " if percent else f"± {error:.2g}, "


def _fit(quality: Quality) -> list[tuple[str, str, str]]:
    rows = [("perplexity", f"{quality.reference_perplexity:.4f}", f"{quality.candidate_perplexity:.4f}")]
    ours: Any = quality.reference_bits_per_byte
    theirs: Any = quality.candidate_bits_per_byte
    if ours is not None and theirs is not None:
        rows.append(("bits per byte", f"{ours:.4f}", f"{theirs:.4f}"))
    return rows
