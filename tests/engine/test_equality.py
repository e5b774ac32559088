"""Promise P1: what the engine decodes in float32 is what transformers decodes, for every family and every way to batch.

Judged teacher-forced on hasten's own tokens: where transformers' two best logits are further apart than 1e-4 the ids must be
equal, and every reported log-probability must be transformers' within 1e-4 · max(1, |logprob|).
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
from hasten.ops.cpu.cpu import runnable
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.ops.cpu.matrix import Matrix
from hasten.ops.cpu.program import AttentionShape, Buffer, Program
from hasten.ops.torch.backend import TorchOps
from tests.tiny_models import TINY, tiny_reference

PROMPTS, NEW_TOKENS, TOLERANCE = 64, 64, 1e-4
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3)


def runnable_here() -> list[str]:
    library = native_library()
    return runnable(library) if isinstance(library, NativeLibrary) else ["no native library"]


def ragged_prompts(vocab_size: int, *, longest: int = 60) -> list[dict[str, list[int]]]:
    """Of 1 to ``longest`` tokens; two thirds begin with one of three stems, so that the prefix cache has work."""
    draw = random.Random(vocab_size)
    stems = [[draw.randrange(vocab_size) for _ in range(longest * 2 // 3)] for _ in range(3)]
    prompts = []
    for i in range(PROMPTS):
        stem = stems[i % 3][: draw.randint(1, len(stems[0]))] if i % 3 else []
        own = [draw.randrange(vocab_size) for _ in range(draw.randint(1, longest - len(stem)))]
        prompts.append({"prompt_token_ids": stem + own})
    return prompts


def worst_difference(reference: PreTrainedModel, outputs: list[RequestOutput]) -> float:
    """Largest |Δlogprob| / max(1, |logprob|); infinite if an id differs where transformers is sure of it."""
    worst = 0.0
    for output in outputs:
        answer, prompt = output.outputs[0], output.prompt_token_ids
        assert len(answer.token_ids) == NEW_TOKENS and answer.logprobs is not None
        ids = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(prompt) - 1 :].float()
        right = torch.log_softmax(logits, dim=-1)
        best = logits.topk(2).values
        sure = best[:, 0] - best[:, 1] > TOLERANCE
        if (sure & (logits.argmax(-1) != torch.tensor(answer.token_ids))).any():
            return float("inf")
        for position, reported in enumerate(answer.logprobs):
            for token_id, logprob in ((reported.token_id, reported.logprob), *reported.top):
                expected = float(right[position, token_id])
                worst = max(worst, abs(logprob - expected) / max(1.0, abs(expected)))
    return worst


def decode(folder: Path, *, prefix_caching: bool, backend: str, max_num_seqs: int = 16) -> list[RequestOutput]:
    """Ragged, batched, in chunks of a small budget, over a pool that makes some requests wait."""
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


@pytest.mark.parametrize("isa", runnable_here())
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
    whole = Program.linear
    patch.setattr(Program, "linear", lambda self, matrix, x, bias, out, **named: whole(self, matrix, x, None, out, **named))
    patch.setattr(TorchOps, "linear", lambda self, x, weight, bias: torch.nn.functional.linear(x, weight))


def double_the_rope_base(patch: pytest.MonkeyPatch) -> None:
    whole = RotarySpec.__init__
    patch.setattr(RotarySpec, "__init__", lambda self, theta, *rest, **named: whole(self, 2 * theta, *rest, **named))


def widen_the_window(patch: pytest.MonkeyPatch) -> None:
    whole = TorchOps.attend_paged

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: object, mask: AttentionMask) -> torch.Tensor:
        wider = mask if mask.window is None else dataclasses.replace(mask, window=mask.window + 1)
        return whole(q, k, v, kv, wider)  # type: ignore[arg-type]

    patch.setattr(TorchOps, "attend_paged", staticmethod(attend))
    shape = AttentionShape.__init__
    patch.setattr(
        AttentionShape,
        "__init__",
        lambda self, heads, scale, window: shape(self, heads, scale, None if window is None else window + 1),
    )


def shift_the_positions(patch: pytest.MonkeyPatch) -> None:
    look_up = Program.embed

    def embed(self: Program, matrix: Matrix, out: Buffer, *, by_position: bool = False) -> None:
        if not by_position:
            look_up(self, matrix, out)

    patch.setattr(Program, "embed", embed)
    whole = Decoder.run
    patch.setattr(
        Decoder, "run", lambda self, hidden, positions, *rest, **named: whole(self, hidden, positions + 1, *rest, **named)
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
