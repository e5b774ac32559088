"""Damaged quantised checkpoints, and GGUF files: hasten answers, or refuses them by name.

A case damages the files, the tensors or the settings of a checkpoint, opens it and reads every matrix. Each matrix has the shape
that the header promised, or the case ends in a ``CheckpointError``, in bounded time and memory. Half of the cases load the
checkpoint with native kernels and generate: they end in tokens or a ``HastenError``. A new format is one entry of ``FORMATS``.
"""

from __future__ import annotations

import io
import random
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM

from hasten import LLM, SamplingParams
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, HastenError, InvalidRequest
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantize
from tests.compressed_checkpoints import KINDS, write_compressed
from tests.fuzz.file_mutations import mutate
from tests.fuzz.gguf_mutations import FILE, mutate_gguf_tensors, mutate_header, mutate_metadata
from tests.fuzz.report import Report
from tests.fuzz.tensor_mutations import mutate_settings, mutate_tensors
from tests.gguf_files import BLOCK_TYPES, write_gguf
from tests.quantized_checkpoints import write_awq, write_fp8, write_gptq
from tests.text.gguf_vocabularies import add_letters
from tests.tiny_models import IDS, SIZES, redraw

MAX_PEAK_GROWTH = 256 << 20  # bytes: the checkpoints have less than 2 MB
LLM_SHARE = 0.5
PROMPT = {"prompt_token_ids": [5, 9, 80, 3]}
ENGINE: dict[str, Any] = {"max_model_len": 16, "kv_cache_memory": "1MiB", "max_num_seqs": 2, "max_num_batched_tokens": 16}

Draw = Callable[[random.Random], dict[str, Any]]
Mutation = Callable[[Path, random.Random], str]


class Format(NamedTuple):
    write: Callable[..., Any]  # (folder, float checkpoint, **options)
    draw: Draw  # of the options
    mutations: tuple[Mutation, ...] = (mutate, mutate_tensors, mutate_tensors, mutate_settings)
    file: str = ""  # the model inside the folder; empty: the folder
    hidden_size: int = 64


def _write_gguf(folder: Path, source: Path, *, types: str, tokenizer: bool) -> None:
    def edit(writer: GGUFWriter) -> None:
        if tokenizer:
            add_letters(writer)
        else:
            writer.add_tokenizer_model("no_vocab")

    folder.mkdir()
    write_gguf(folder / FILE, source, {"*embed*": "Q8_0", "*layers.0.self_attn.k*": "F16", "*": types}, edit=edit)


FORMATS = {
    "gptq": Format(
        write_gptq,
        lambda rng: {
            "bits": rng.choice([2, 3, 4, 8]),
            "symmetric": rng.random() < 0.5,
            "desc_act": rng.random() < 0.5,
            "version": rng.choice([1, 2]),
        },
    ),
    "awq": Format(write_awq, lambda rng: {"zero_point": rng.random() < 0.7}),
    "fp8": Format(
        write_fp8,
        lambda rng: {
            "block": rng.choice([(32, 32), (24, 40), "channel", "tensor"]),
            "scale_dtype": rng.choice([torch.float32, torch.bfloat16, torch.uint8, torch.float8_e8m0fnu]),
            "static": rng.random() < 0.3,
        },
    ),
    "compressed-tensors": Format(write_compressed, lambda rng: {"kind": rng.choice(sorted(KINDS))}),
    "gguf": Format(
        _write_gguf,
        lambda rng: {"types": rng.choice([*BLOCK_TYPES, "F16"]), "tokenizer": rng.random() < 0.5},
        (mutate, mutate_header, mutate_metadata, mutate_metadata, mutate_gguf_tensors, mutate_gguf_tensors),
        FILE,
        256,  # blocks of 256 weights
    ),
}


def run(rng: random.Random, cases: int, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="hasten-fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        originals = _Originals(folder)
        peak = 0
        for case_rng in report.each(rng, cases):
            kind = case_rng.choice(sorted(FORMATS))
            damaged = folder / "damaged"
            shutil.copytree(originals.draw(kind, case_rng), damaged)
            peak = peak or _peak_bytes()
            what = case_rng.choice(FORMATS[kind].mutations)(damaged, case_rng)
            loads = case_rng.random() < LLM_SHARE
            report.case = f"{kind}, {what}{', loaded' if loads else ''}"
            try:
                if loads:
                    _generate(damaged / FORMATS[kind].file, case_rng)
                else:
                    _read_all(damaged / FORMATS[kind].file)
                report.outcomes["answered" if loads else "read"] += 1
            except HastenError as error:
                report.outcomes[type(error).__name__] += 1
                if "\n" in str(error):
                    report.fail(f"the message has several lines: {error}")
                if not loads and not isinstance(error, CheckpointError):
                    report.fail(f"{type(error).__name__}: {error}"[:500])
            except Exception as error:
                report.outcomes["fault"] += 1
                report.fail(f"{type(error).__name__}: {error}"[:500])
            shutil.rmtree(damaged)
            if (now := _peak_bytes()) > peak + MAX_PEAK_GROWTH:
                report.fail(f"the peak of memory grew by {(now - peak) >> 20} MiB")
                peak = now


class _Originals:
    """The checkpoints that cases damage, each written at its first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[tuple[str, str], Path] = {}

    def draw(self, kind: str, rng: random.Random) -> Path:
        form = FORMATS[kind]
        options = form.draw(rng)
        key = kind, str(options)
        if key not in self._written:
            self._written[key] = self._folder / f"{kind}-{len(self._written)}"
            with redirect_stderr(io.StringIO()):  # progress bars of libraries
                form.write(self._written[key], self._source(form.hidden_size), **options)
        return self._written[key]

    def _source(self, hidden_size: int) -> Path:
        """Return a float checkpoint of one layer, whose sizes every width of codes packs."""
        folder = self._folder / f"float-{hidden_size}"
        if not folder.exists():
            sizes = {**SIZES, **IDS, "num_hidden_layers": 1, "hidden_size": hidden_size}
            if hidden_size > SIZES["hidden_size"]:
                sizes["intermediate_size"] = hidden_size
            model = LlamaForCausalLM(LlamaConfig(**sizes))
            redraw(model, hidden_size)
            model.save_pretrained(folder)
        return folder


def _read_all(model: Path) -> None:
    for matrix in Checkpoint.open(model).matrices.values():
        _read(matrix)


def _read(matrix: StoredMatrix) -> None:
    """Read a matrix in two parts, and check what it promises."""
    outputs, inputs = matrix.shape
    assert matrix.spec.describe()
    assert matrix.nbytes > 0
    order = matrix.input_order()
    assert order is None or torch.equal(order.sort().values, torch.arange(inputs))
    for start, stop in ((0, (outputs + 1) // 2), (outputs // 2, outputs)):
        weights = dequantize(matrix, start, stop)
        assert weights.shape == (stop - start, inputs)
        assert not weights.isnan().any()


def _generate(model: Path, rng: random.Random) -> None:
    activations = rng.choice(["auto", "auto", "int8", "float"])
    dtype = rng.choice(["auto", "auto", "float32", "bfloat16", "float16"])
    llm = LLM(str(model), backend="cpu", threads=1, activations=activations, dtype=dtype, speculative_method="off", **ENGINE)
    output = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 3 or output.outputs[0].finish_reason == "error"  # logits that are not finite
    llm.generate(PROMPT, None, use_tqdm=False)  # with the checkpoint's own settings
    if llm.tokenizer is not None:
        with suppress(InvalidRequest):  # of a vocabulary that cannot express the text
            llm.generate("ab cd", SamplingParams(max_tokens=3), use_tqdm=False)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
