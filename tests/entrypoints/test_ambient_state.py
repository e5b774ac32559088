"""An engine gives the same tokens whatever state of PyTorch its caller has set, while it loads and while it generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from hasten import LLM, SamplingParams

PROMPTS = [[3, 4, 5, 6, 7, 3, 4, 5], [9, 8, 7]]
COMMON = {"max_tokens": 5, "ignore_eos": True}
# Every processor and warper, logprobs, several completions and beams.
REQUESTS = [
    SamplingParams(temperature=0, logprobs=3, **COMMON),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=1, n=2, **COMMON),
    SamplingParams(temperature=1.5, typical_p=0.9, repetition_penalty=1.2, presence_penalty=0.3, seed=2, **COMMON),
    SamplingParams(
        temperature=0.01,
        frequency_penalty=0.2,
        no_repeat_ngram_size=3,
        logit_bias={5: 2.0},
        bad_words_ids=[[6, 7]],
        seed=3,
        **COMMON,
    ),
    SamplingParams(temperature=0, allowed_token_ids=list(range(30)), min_tokens=4, max_tokens=5),
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float16": lambda: default_dtype(torch.float16),
    "with meta": lambda: torch.device("meta"),
    "default device meta": lambda: default_device("meta"),
    "deterministic": deterministic,
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": lambda: torch.set_grad_enabled(True),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
OPTIONS = [
    {"backend": "torch", "dtype": "float32"},
    {"backend": "cpu", "dtype": "float32"},
    {"backend": "cpu", "dtype": "bfloat16", "quantization": "int8", "kv_cache_dtype": "int8"},
]


def load(folder: Path, options: dict[str, str]) -> LLM:
    return LLM(str(folder), max_model_len=64, kv_cache_memory="8MiB", threads=1, prefix_caching=False, **options)


def outputs(llm: LLM) -> list[object]:
    found: list[object] = []
    for params in REQUESTS:
        for output in llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False):
            assert output.error is None, output.error
            found += [(each.token_ids, each.logprobs) for each in output.outputs]
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_outputs_do_not_depend_on_the_state_of_pytorch(tiny: Callable[[str], Path], options: dict[str, str]) -> None:
    folder = tiny("qwen3-mixed-window")
    plain = load(folder, options)
    expected = outputs(plain)
    for name, setting in SETTINGS.items():
        with setting():
            assert outputs(plain) == expected, f"run under {name}"
            inside = load(folder, options)
            assert outputs(inside) == expected, f"loaded and run under {name}"
        if name == "inference mode":  # tensors made in it refuse to be written outside
            assert outputs(inside) == expected, f"loaded under {name}"
