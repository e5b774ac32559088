"""Promise P1: greedy decoding in float32 equals transformers, for every family and every way to batch.

Transformers scores hasten's suffix tokens (teacher forcing). Ids must be equal where its two best logits differ by more than 1e-4.
Every reported log-probability must lie within 1e-4 · max(1, |logprob|) of its suffix.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hasten import LLM, RequestOutput, SamplingParams
from hasten.layers.rotary import RotarySpec
from hasten.models.decoder import Decoder
from hasten.ops.base import AttentionMask
from hasten.ops.cpu.cpu import supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.ops.cpu.matrix import Matrix
from hasten.ops.cpu.program import AttentionParams, Buffer, Program
from hasten.ops.torch.backend import TorchOps
from tests.tiny_models import TINY, tiny_reference

PROMPTS, NEW_TOKENS, TOLERANCE = 64, 64, 1e-4
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3)


def isas_of_this_cpu() -> list[str]:
    library = native_library()
    return supported_isas(library) if isinstance(library, NativeLibrary) else ["no native library"]


def ragged_prompts(vocab_size: int, *, longest: int = 60) -> list[dict[str, list[int]]]:
    """Return prompts of 1 to ``longest`` tokens; two thirds start with one of three shared prefixes."""
    draw = random.Random(vocab_size)
    prefixes = [[draw.randrange(vocab_size) for _ in range(longest * 2 // 3)] for _ in range(3)]
    prompts = []
    for i in range(PROMPTS):
        prefix = prefixes[i % 3][: draw.randint(1, len(prefixes[0]))] if i % 3 else []
        suffix = [draw.randrange(vocab_size) for _ in range(draw.randint(1, longest - len(prefix)))]
        prompts.append({"prompt_token_ids": prefix + suffix})
    return prompts


def worst_difference(reference: PreTrainedModel, outputs: list[RequestOutput]) -> float:
    """Return the largest |Δlogprob| / max(1, |logprob|).

    It is infinite if an id differs where the two best logits are further apart than the tolerance.
    """
    worst = 0.0
    for output in outputs:
        completion, prompt = output.outputs[0], output.prompt_token_ids
        assert len(completion.token_ids) == NEW_TOKENS and completion.logprobs is not None
        ids = torch.tensor([[*prompt, *completion.token_ids[:-1]]])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(prompt) - 1 :].float()
        expected_logprobs = torch.log_softmax(logits, dim=-1)
        top2 = logits.topk(2).values
        decided = top2[:, 0] - top2[:, 1] > TOLERANCE
        if (decided & (logits.argmax(-1) != torch.tensor(completion.token_ids))).any():
            return float("inf")
        for position, reported in enumerate(completion.logprobs):
            for token_id, logprob in ((reported.token_id, reported.logprob), *reported.top):
                expected = float(expected_logprobs[position, token_id])
                worst = max(worst, abs(logprob - expected) / max(1.0, abs(expected)))
    return worst


def decode(folder: Path, *, prefix_caching: bool, backend: str, max_num_seqs: int = 16) -> list[RequestOutput]:
    """Decode ragged prompts in batches and small chunks, with a KV pool that makes some requests wait."""
    llm = LLM(
        str(folder),
        dtype="float32",
        backend=backend,
        block_size=8,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=40,
        prefix_caching=prefix_caching,
        kv_cache_memory="8MiB",
        max_model_len=128,
    )
    outputs = llm.generate(ragged_prompts(llm.describe()["vocab_size"]), GREEDY, use_tqdm=False)
    assert (sum(output.metrics.num_cached_tokens for output in outputs) > 0) == prefix_caching
    return outputs


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefix-cache", "no-cache"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family_equals_transformers(name: str, prefix_caching: bool, backend: str, tiny: Callable[[str], Path]) -> None:
    outputs = decode(tiny(name), prefix_caching=prefix_caching, backend=backend)
    assert worst_difference(tiny_reference(name), outputs) <= TOLERANCE


@pytest.mark.parametrize("isa", isas_of_this_cpu())
@pytest.mark.parametrize("name", ["gpt2", "llama-mqa-bias", "mistral-window", "qwen3-gqa"])
def test_every_instruction_set_equals_transformers(
    name: str, isa: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CPU_ISA", isa)
    assert worst_difference(tiny_reference(name), decode(tiny(name), prefix_caching=True, backend="cpu")) <= TOLERANCE


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["prefix-cache", "no-cache"])
def test_the_demo_model_equals_transformers(prefix_caching: bool, backend: str) -> None:
    from hasten.checkpoints.hub import resolve

    folder = resolve("demo")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert worst_difference(reference, decode(folder, prefix_caching=prefix_caching, backend=backend, max_num_seqs=32)) <= TOLERANCE


def drop_a_bias(patch: pytest.MonkeyPatch) -> None:
    original = Program.linear
    patch.setattr(Program, "linear", lambda self, matrix, x, bias, out, **kwargs: original(self, matrix, x, None, out, **kwargs))
    patch.setattr(TorchOps, "linear", lambda self, x, weight, bias: torch.nn.functional.linear(x, weight))


def double_the_rope_base(patch: pytest.MonkeyPatch) -> None:
    original = RotarySpec.__init__
    patch.setattr(RotarySpec, "__init__", lambda self, theta, *args, **kwargs: original(self, 2 * theta, *args, **kwargs))


def widen_the_window(patch: pytest.MonkeyPatch) -> None:
    original = TorchOps.attend_paged

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: object, mask: AttentionMask) -> torch.Tensor:
        wider = mask if mask.window is None else dataclasses.replace(mask, window=mask.window + 1)
        return original(q, k, v, kv, wider)  # type: ignore[arg-type]

    patch.setattr(TorchOps, "attend_paged", staticmethod(attend))
    init = AttentionParams.__init__
    patch.setattr(
        AttentionParams,
        "__init__",
        lambda self, heads, scale, window: init(self, heads, scale, None if window is None else window + 1),
    )


def shift_the_positions(patch: pytest.MonkeyPatch) -> None:
    original_embed = Program.embed

    def embed(self: Program, matrix: Matrix, out: Buffer, *, by_position: bool = False) -> None:
        if not by_position:
            original_embed(self, matrix, out)

    patch.setattr(Program, "embed", embed)
    original = Decoder.run
    patch.setattr(
        Decoder, "run", lambda self, hidden, positions, *args, **kwargs: original(self, hidden, positions + 1, *args, **kwargs)
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (drop_a_bias, "llama-mqa-bias"),
        (drop_a_bias, "qwen2-tied"),
        (double_the_rope_base, "llama-gqa"),
        (widen_the_window, "mistral-window"),
        (widen_the_window, "qwen2-mixed-window"),
        (shift_the_positions, "gpt2"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_planted_faults_are_caught(
    fault: Callable[[pytest.MonkeyPatch], None],
    name: str,
    backend: str,
    tiny: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    assert worst_difference(tiny_reference(name), decode(tiny(name), prefix_caching=True, backend=backend)) > TOLERANCE
