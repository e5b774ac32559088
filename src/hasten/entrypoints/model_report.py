"""``report_model``: what loading a checkpoint would give on this machine, before any weight is read."""

from __future__ import annotations

import dataclasses
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.engine_options import EngineOptions
from hasten.entrypoints.answer_parsers import answer_parsers
from hasten.entrypoints.wiring.check_quantization import check_quantization
from hasten.models.load import plan_decoder, read_spec
from hasten.ops.cpu.memory import available_bytes
from hasten.runners.backends.choose import choose_backend
from hasten.text.tokenizer import TextTokenizer


def report_model(model: str, options: EngineOptions) -> dict[str, Any]:
    """Return the architecture, the schemes, the memory and the kernels of ``model`` with these options.

    Raises like ``LLM``, but never ``CapacityError``.
    """
    folder = resolve(model, options.revision, quiet=not options.show_progress)
    checkpoint = Checkpoint.open(folder)
    check_quantization(options, checkpoint)
    backend = choose_backend(options, read_spec(checkpoint))
    plan = plan_decoder(checkpoint, dtype=options.dtype, ops=backend.ops, formats=backend.formats)
    weights = plan.summary()
    return {
        "model": model,
        "folder": str(folder),
        "architecture": plan.spec.model_type,
        "layers": plan.spec.num_layers,
        "parameters": weights.num_weights,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "file_bytes": weights.file_bytes,
        **weights.as_dict(),
        "weight_bytes": plan.weight_bytes,
        "free_bytes": available_bytes(),
        "kernels": backend.describe(plan.decoder)["kernels"],
        **_parsers(options, TextTokenizer.of(checkpoint, plan.spec.vocab_size)),
    }


def _parsers(options: EngineOptions, tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """Return the parsers of tool calls and of thoughts that fit the chat template, and why."""
    choices = answer_parsers(options, tokenizer, has_tools=True)
    return {
        "tool_call_parser": dataclasses.asdict(choices.tool),
        "reasoning_parser": dataclasses.asdict(choices.reasoning),
    }
