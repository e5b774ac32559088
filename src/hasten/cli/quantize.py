"""``hasten quantize``: write a smaller copy of a model, and measure what it costs in quality."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hasten.cli.compressed import NumTokens, Out, Text, check_texts, measure_result
from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, model_name
from hasten.cli.interrupt import INTERRUPTED, Interrupt
from hasten.cli.options import OptionGroup, OptionValues, option_type_of, with_options
from hasten.compress.quantize.options import AUTO, CAST, QuantizeOptions
from hasten.core.errors import InvalidOption, nearest, show
from hasten.quality.window import NUM_TOKENS

OPTIONS = OptionGroup(
    "options",
    "Quantisation",
    QuantizeOptions,
    {
        "method": "rtn, gptq, awq, smoothquant, hqq or fp8; a transform and a rounding, such as smoothquant+gptq; auto (bits per "
        "layer, with --max-kl or --target-bytes); or cast (to --dtype).",
        "format": "compressed-tensors, gptq, awq or fp8.",
        "bits": "Bits of a weight; 4, or 8 with quantised activations, if left out.",
        "group_size": "Inputs that share a scale; -1: one scale per output. 128, or -1 for 8 bits, if left out.",
        "symmetric": "Whether a code in the middle means 0; else groups have zero points. Only the format awq has those.",
        "activations": "Inputs of products: none (weight-only), int8 or fp8 (scales at run time), int8-static or fp8-static "
        "(scales from the calibration).",
        "clip": "Ranges of groups: none (all weights), mse, percentile, or output (AWQ's search).",
        "percentile": "Percentile of --clip percentile.",
        "ignore": 'A module that stays as it is: its name, or a regular expression after "re:".',
        "samples": "Calibration sequences.",
        "seq_len": "Tokens of a calibration sequence.",
        "seed": "Seed of the choice of calibration sequences.",
        "dtype": "Of the method cast: float32, bfloat16, float16, or auto, the smallest that this machine computes in.",
        "max_kl": "Of the method auto: limit of the mean KL divergence from the original, in nats; the upper 95 % bound keeps it.",
        "target_bytes": "Of the method auto: size limit of the weights, such as 400MB; the KL divergence is the least within it.",
        "threads": "Compute threads; one per usable core by default.",
    },
)

MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of a method: act_order, damping, max_damping or block_size of gptq; iterations, p or beta of hqq; "
        "grid_size or duo_scaling of awq; alpha of smoothquant. May be repeated.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help='Text to calibrate on: UTF-8, or .jsonl with a "text" per line; the shipped one if left out.',
    ),
]


@with_options(OPTIONS)
def quantize(
    out: Out,
    name: ModelArgument = None,
    model: ModelOption = None,
    set_: MethodOptions = None,
    calibration: Calibration = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped or killed.")] = False,
    text: Text = None,
    num_tokens: NumTokens = NUM_TOKENS,
    debug: Debug = False,
    *,
    options: OptionValues,
) -> None:
    """Write a quantised copy of a model that vLLM and transformers load.

    Then measure its size, speed and quality against the original.
    """
    from hasten.compress.quantize.run import run_method
    from hasten.entrypoints.progress import step_bar

    model = model_name(name, model)
    chosen = QuantizeOptions(**options)
    check_texts(text, num_tokens)
    if calibration is not None:
        _check_calibration(chosen)
    with Interrupt() as interrupt, step_bar("quantising") as progress:
        result = run_method(
            model,
            out,
            chosen,
            method_options=_method_options(set_ or ()),
            calibration=calibration,
            resume=resume,
            progress=progress,
            should_stop=lambda: interrupt.requested,
        )
    if result is None:
        print("stopped" + ("; the same command with --resume continues" if chosen.method != CAST else ""), file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    print(f"written to {out} in {result.seconds:.0f} s", file=sys.stderr)
    if interrupt.requested:  # while the files were put together
        print("stopped before it was measured", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    for what, value in result.card.options.items():
        print(f"{what}: {value}", file=sys.stderr)
    measure_result(result, text, num_tokens, chosen.threads, titles=("ORIGINAL", "QUANTISED"))


def _check_calibration(options: QuantizeOptions) -> None:
    """Raise ``InvalidOption`` if the method needs no calibration text."""
    from hasten.compress.quantize.recipe import build_recipe

    if options.method == CAST or (options.method != AUTO and not build_recipe(options).needs_calibration):
        raise InvalidOption(
            f"--calibration has no effect with the method {options.method}", remedy="Omit it, or choose gptq or awq"
        )


def _method_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``--set`` in the types of the methods' fields. Raises ``InvalidOption``."""
    from hasten.compress.quantize.recipe import method_class, rounding_names, transform_names

    classes = [method_class(name) for name in (*rounding_names(), *transform_names())]
    hints = {field.name: get_type_hints(cls)[field.name] for cls in classes for field in dataclasses.fields(cls)}
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in hints:
            raise InvalidOption("no method has such an option", got=show(text), remedy=nearest(name, hints))
        option_type = option_type_of(hints[name])
        try:
            values[name] = option_type.parse(value)
        except (KeyError, ValueError):
            raise InvalidOption(f"--set {name} has the wrong form", got=show(text), allowed=option_type.metavar) from None
    return values
