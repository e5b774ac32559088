"""Options for quantised checkpoints: refused where they do not apply, and passed on where they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.quantized_models import Scheme, quantize, register

from hasten import LLM, SamplingParams
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.entrypoints.wiring.load_drafters import drafter_weight_bytes, plan_draft_model
from hasten.runners.backends.choose import choose_backend
from hasten.runners.backends.native import NativeBackend

PROMPT = {"prompt_token_ids": [5, 9, 80, 3, 3, 41]}
SMALL = {"max_model_len": 32, "kv_cache_memory": "1MiB", "threads": 1}


@pytest.fixture
def quantised(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    register(monkeypatch)
    return str(quantize(tiny("llama-gqa"), tmp_path, lambda _: Scheme())[0])


def test_a_quantised_checkpoint_is_not_quantised_again(quantised: str) -> None:
    with pytest.raises(InvalidOption, match=r"already quantised.*quantization='int4' for Tiny int4, groups of 16, offsets"):
        LLM(quantised, quantization="int4", **SMALL)


@pytest.mark.parametrize(
    ("value", "remedy"), [("int8", "--quantization int8 or int4\\."), ("float", "--quantization int8-weight-only")]
)
def test_activations_need_a_quantised_checkpoint(tiny: Callable[[str], Path], value: str, remedy: str) -> None:
    with pytest.raises(InvalidOption, match=rf"the weights of .* are not quantised: got activations='{value}'.*{remedy}"):
        LLM(str(tiny("llama-gqa")), activations=value, **SMALL)


def test_a_quantised_draft_model_is_not_quantised_again(tiny: Callable[[str], Path], quantised: str) -> None:
    with pytest.raises(InvalidOption, match=r"already quantised.*draft_quantization='int4' for Tiny int4"):
        LLM(str(tiny("llama-gqa")), draft_model=quantised, draft_quantization="int4", **SMALL)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_quantised_draft_model_drafts(tiny: Callable[[str], Path], quantised: str, quantization: str | None) -> None:
    """Its matrices stay as they are, also where the model's weights are quantised."""
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    options = {"backend": "cpu", "quantization": quantization, **SMALL}
    alone = LLM(str(tiny("llama-gqa")), speculative_method="off", **options).generate(PROMPT, greedy, use_tqdm=False)
    llm = LLM(str(tiny("llama-gqa")), draft_model=quantised, speculative_method="draft_model", **options)
    drafted = llm.generate(PROMPT, greedy, use_tqdm=False)
    assert drafted[0].outputs[0].token_ids == alone[0].outputs[0].token_ids
    assert llm.engine.stats.num_drafted_tokens > 0


@pytest.mark.parametrize("activations", ["auto", "int8", "float"])
def test_activations_reach_the_formats(activations: str) -> None:
    backend = choose_backend(EngineOptions(backend="cpu", threads=1, activations=activations))
    assert isinstance(backend, NativeBackend)
    assert backend.formats(torch.float32).activations == backend.draft_formats(torch.float32).activations == activations


def test_int8_activations_need_native_kernels(quantised: str) -> None:
    with pytest.raises(InvalidOption, match="activations needs the native CPU kernels"):
        LLM(quantised, activations="int8", backend="torch", **SMALL)
    assert LLM(quantised, activations="float", backend="torch", **SMALL).generate(PROMPT, use_tqdm=False)


def test_a_quantised_draft_model_counts_as_it_is_kept(tiny: Callable[[str], Path], quantised: str) -> None:
    options = EngineOptions(draft_model=quantised, backend="cpu", threads=1)
    backend = choose_backend(options)
    planned = drafter_weight_bytes(options, backend, plan_draft_model(options, backend))
    loaded = LLM(str(tiny("llama-gqa")), draft_model=quantised, backend="cpu", **SMALL).describe()["draft_weight_bytes"]
    assert planned == pytest.approx(loaded, rel=0.05)  # the plan has no padding, and has the vectors
