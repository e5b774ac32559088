"""Beam search, batched with other requests, equals that of transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hasten import LLM, SamplingParams
from tests.tiny_models import tiny_reference

CASES = [
    {"beam_width": 4, "n": 4},
    {"beam_width": 3, "n": 2, "length_penalty": 0.5, "early_stopping": True},
    {"beam_width": 5, "n": 3, "length_penalty": 2.0, "early_stopping": "never"},
    {"beam_width": 2, "n": 1, "repetition_penalty": 1.3},
    {"beam_width": 4, "n": 2, "no_repeat_ngram_size": 2, "min_tokens": 5},
]


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-mixed-window", "qwen3-gqa", "mistral-window", "gpt2"])
def test_beams_equal_transformers(name: str, tiny: Callable[[str], Path]) -> None:
    folder, reference = tiny(name), tiny_reference(name)
    llm = LLM(str(folder), dtype="float32", block_size=4, kv_cache_memory="8MiB", max_num_batched_tokens=64, max_model_len=128)
    draw = random.Random(name)
    vocabulary = llm.describe()["vocab_size"]
    prompts = [[draw.randrange(3, vocabulary) for _ in range(draw.randint(2, 30))] for _ in CASES]
    # Four stop tokens end beams often. All cases run in one batch, each with a greedy request.
    stops = tuple(range(20, 24))
    params = [SamplingParams(temperature=1.0, max_tokens=16, stop_token_ids=stops, **case) for case in CASES]
    greedy = SamplingParams(temperature=0, max_tokens=12)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(2)],
        [setting for param in params for setting in (param, greedy)],
        use_tqdm=False,
    )[::2]
    for prompt, case, output in zip(prompts, CASES, outputs, strict=True):
        expected = transformers_beams(reference, prompt, case, [2, *stops])
        found = [(completion.token_ids, completion.score) for completion in output.outputs]
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        for (_, score), (_, expected_score) in zip(found, expected, strict=True):
            assert score == pytest.approx(expected_score, abs=1e-4, rel=1e-5)


def transformers_beams(
    model: torch.nn.Module, prompt: list[int], case: dict[str, object], eos: list[int]
) -> list[tuple[tuple[int, ...], float]]:
    """Return (new tokens including the stop token, score) of each beam, best first."""
    names = {"beam_width": "num_beams", "n": "num_return_sequences", "min_tokens": "min_new_tokens"}
    settings = {names.get(key, key): value for key, value in case.items()}
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    completions = []
    for ids, score in zip(out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))
        completions.append((tuple(ids[:end]), score))
    return completions


def test_beams_report_raw_logprobs_of_their_own_sequence(tiny: Callable[[str], Path]) -> None:
    """Forked beams share their history only up to the fork."""
    reference = tiny_reference("llama-gqa")
    llm = LLM(str(tiny("llama-gqa")), dtype="float32", block_size=4, kv_cache_memory="8MiB", max_model_len=128)
    prompt = [5, 6, 7, 8, 9]
    params = SamplingParams(beam_width=4, n=4, max_tokens=8, logprobs=1, repetition_penalty=1.5, stop_token_ids=(20, 21))
    for completion in llm.generate({"prompt_token_ids": prompt}, params)[0].outputs:
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        assert completion.logprobs is not None
        assert [reported.token_id for reported in completion.logprobs] == list(completion.token_ids)
        for row, reported in zip(expected, completion.logprobs, strict=True):
            assert reported.logprob == pytest.approx(float(row[reported.token_id]), abs=1e-4, rel=1e-4)
