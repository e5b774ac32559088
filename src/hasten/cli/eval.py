"""``hasten eval``: the quality loss of engine options, against the same checkpoint in float32."""

from __future__ import annotations

import json as encoder
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.engine_options import SCORING_ENGINE, Debug, ModelArgument, ModelOption, model_name
from hasten.cli.options import OptionValues, with_options
from hasten.cli.report import print_table
from hasten.core.errors import InvalidOption
from hasten.quality.window import NUM_TOKENS, WINDOW

if TYPE_CHECKING:
    from hasten.entrypoints.evaluation import Evaluation


@with_options(SCORING_ENGINE)
def evaluate(
    name: ModelArgument = None,
    model: ModelOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help='The text: UTF-8, or .jsonl with a "text" per line; the shipped one if left out.'
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
        typer.Option("--window", metavar="TOKENS", help=f"Score the text in windows of this many tokens; {WINDOW} if left out."),
    ] = None,
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", metavar="TOKENS", help="Maximum tokens to score, spread evenly over the text.")
    ] = NUM_TOKENS,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the result as JSON; - is standard output, instead of the table."),
    ] = None,
    debug: Debug = False,
    *,
    engine: OptionValues,
) -> None:
    """Measure the quality loss of options such as --dtype against float32.

    The metrics are KL divergence, top-1 agreement and perplexity.
    """
    from hasten.bench.provenance import provenance
    from hasten.entrypoints.evaluation import evaluate as run

    model = model_name(name, model)
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise InvalidOption(f"{json} cannot be written", remedy="Give a file in an existing folder")
    evaluation = run(
        model,
        {"show_progress": True, **engine},
        reference=reference,
        text=text,
        token_ids=token_ids,
        window=window,
        num_tokens=num_tokens,
    )
    if json is not None:
        _write(json, encoder.dumps({**provenance("quality"), **evaluation.as_dict()}))
    if json is None or str(json) != "-":
        _show(evaluation)


def _write(file: Path, line: str) -> None:
    if str(file) == "-":
        print(line)
        return
    try:
        file.write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"{file} cannot be written", got=error.strerror, remedy="Give another file") from None


def _show(evaluation: Evaluation) -> None:
    quality = evaluation.quality
    for side, about in (("reference", evaluation.reference), ("candidate", evaluation.candidate)):
        kv_cache = about.get("kv_cache_dtype") or about["dtype"]
        print(f"{side}: {about['model']}, weights {about['weights']}, KV cache {kv_cache}, {about['kernels']}", file=sys.stderr)
    plural = "" if quality.num_windows == 1 else "s"
    windows = f"{quality.num_windows:,} window{plural} of up to {evaluation.window:,}"
    print(f"{evaluation.text}: {quality.num_tokens:,} tokens in {windows}", file=sys.stderr)
    # A single window has no standard error.
    kl_error = "" if quality.kl_standard_error is None else f"± {quality.kl_standard_error:.2g}, "
    kl_tail = f"median {quality.kl_median:.3g}, p99 {quality.kl_p99:.3g}, max {quality.kl_max:.3g}"
    top1_error = "" if quality.top1_standard_error is None else f"± {quality.top1_standard_error * 100:.2g} points"
    divergence = [
        ("mean KL, nats", f"{quality.kl_mean:.3g}", kl_error + kl_tail),
        ("top-1 agreement", f"{quality.top1_agreement:.2%}", top1_error),
    ]
    print_table(("", "VALUE", "SPREAD"), divergence)
    print()
    likelihood = [("perplexity", f"{quality.reference_perplexity:.4f}", f"{quality.candidate_perplexity:.4f}")]
    if quality.reference_bits_per_byte is not None and quality.candidate_bits_per_byte is not None:
        likelihood.append(("bits per byte", f"{quality.reference_bits_per_byte:.4f}", f"{quality.candidate_bits_per_byte:.4f}"))
    print_table(("", "REFERENCE", "CANDIDATE"), likelihood)
