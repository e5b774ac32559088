"""Sections in parallel against plain decoding of as many tokens, at batch 1.

``python benchmarks/grow.py demo grown/demo``, then
``python benchmarks/sections.py grown/demo --out benchmarks/results/sections.json``

One answer of six given sections of 96 tokens (``LLM.generate_sections``) against one request that writes 576 tokens after the
prompt of the first section. Runs take turns, and each starts with an empty prefix cache. Both runs of a turn have the same seed.
The first turn is a warm-up.

The demo model cannot answer questions, so nothing can judge its answers. The quality figure is a mean log-probability per token
instead: how likely the model finds a text on a page that is read from the top, with the question, the skeleton and all earlier
sections before it. A section that repeats an earlier one, or does not fit to it, is unlikely there.

    parallel      the sections that were written without each other
    sequential    sections of the same headings, each written with all earlier ones in its prompt
    plain         the one long request, after its own prompt
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.bench.report import spread
from hasten.entrypoints.sections.output import SectionsOutput
from hasten.entrypoints.sections.section_prompts import SEPARATOR

QUESTION = "What are the main parts of the asyncio module?"
HEADINGS = ("Event loops", "Coroutines and tasks", "Streams", "Subprocesses", "Queues", "Synchronization primitives")
TokenIds = tuple[int, ...]


def settings(tokens: int, seed: int, temperature: float) -> SamplingParams:
    """Return settings that give exactly so many tokens, whatever the model writes."""
    return SamplingParams(temperature=temperature, seed=seed, ignore_eos=True, min_tokens=tokens, max_tokens=tokens)


def in_sections(llm: LLM, tokens: int, seed: int, temperature: float) -> SectionsOutput:
    params = settings(tokens, seed, temperature)
    return llm.generate_sections(QUESTION, params, skeleton=HEADINGS, section_tokens=tokens, router=False)


def complete(llm: LLM, prompt_ids: TokenIds, params: SamplingParams) -> TokenIds:
    return llm.generate({"prompt_token_ids": prompt_ids}, params, use_tqdm=False)[0].outputs[0].token_ids


def timed(llm: LLM, call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call that starts with an empty prefix cache, and its result."""
    llm.reset_prefix_cache()
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def mean_logprob(llm: LLM, parts: list[tuple[TokenIds, TokenIds]]) -> float:
    """Return the mean log-probability per token of texts, each after its own prompt: (prompt, text)."""
    scores = [llm.score({"prompt_token_ids": prompt}, [{"token_ids": text}])[0] for prompt, text in parts]
    return sum(score.total for score in scores) / sum(len(score.token_ids) for score in scores)


def on_one_page(llm: LLM, output: SectionsOutput, write: Callable[[int, TokenIds], TokenIds]) -> list[tuple[TokenIds, TokenIds]]:
    """Return (everything before the section, its text) for each section of a page that is filled from the top."""
    parts = []
    page, separator = (
        output.sections[0].prompt_token_ids[: output.num_shared_tokens],
        tuple(llm.tokenizer.encode_fragment(SEPARATOR)),
    )
    for section in output.sections:
        page += section.prompt_token_ids[output.num_shared_tokens :]  # the heading
        text = write(section.index, page)
        parts.append((page, text))
        page += text + separator
    return parts


def mean_logprobs(llm: LLM, output: SectionsOutput, plain: TokenIds, params: SamplingParams) -> dict[str, float]:
    """Return the quality figures of one turn. ``params``: of the sections."""

    def parallel(index: int, page: TokenIds) -> TokenIds:
        return output.sections[index].token_ids

    def sequential(index: int, page: TokenIds) -> TokenIds:
        return complete(llm, page, params.replace(seed=output.sections[index].seed))

    return {
        "parallel": mean_logprob(llm, on_one_page(llm, output, parallel)),
        "sequential": mean_logprob(llm, on_one_page(llm, output, sequential)),
        "plain": mean_logprob(llm, [(output.sections[0].prompt_token_ids, plain)]),
    }


def measure(llm: LLM, tokens: int, turns: int, temperature: float) -> dict[str, Any]:
    """Return wall times, tokens and log-probabilities of all turns but the first, which is a warm-up."""
    seconds: dict[str, list[float]] = {"sections": [], "plain": []}
    logprobs: list[dict[str, float]] = []
    num_tokens = len(HEADINGS) * tokens
    prompt = in_sections(llm, tokens, 0, temperature).sections[0].prompt_token_ids
    for turn in range(turns + 1):
        calls: dict[str, Callable[[], Any]] = {
            "sections": partial(in_sections, llm, tokens, turn, temperature),
            "plain": partial(complete, llm, prompt, settings(num_tokens, turn, temperature)),
        }
        found = {name: timed(llm, calls[name]) for name in sorted(calls, reverse=turn % 2 == 0)}
        output, plain = found["sections"][1], found["plain"][1]
        assert output.errors == () and output.num_output_tokens == len(plain) == num_tokens
        if turn:
            for name, (spent, _) in found.items():
                seconds[name].append(spent)
            logprobs.append(mean_logprobs(llm, output, plain, settings(tokens, turn, temperature)))
    ratios = [plain / own for plain, own in zip(seconds["plain"], seconds["sections"], strict=True)]
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": spread(ratios),
        "output_tokens": {"sections": output.num_output_tokens, "plain": num_tokens},
        "prompt_tokens": {"sections": output.num_prompt_tokens, "plain": len(prompt)},
        "cached_tokens": {"sections": output.num_cached_tokens, "plain": 0},
        "mean_logprob": {name: spread([turn[name] for turn in logprobs]) for name in logprobs[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each section")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quantization")
    parser.add_argument("--speculative-methods", nargs="+", default=["off", "auto"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {}
    for method in options.speculative_methods:
        engine = {"threads": options.threads, "quantization": options.quantization}
        engine = {name: value for name, value in engine.items() if value is not None}
        with LLM(options.model, max_model_len=1024, max_num_seqs=8, speculative_method=method, **engine) as llm:
            description = llm.describe()
            rows[method] = row = measure(llm, options.tokens, options.turns, options.temperature)
        seconds, tokens, logprob = row["seconds"], row["output_tokens"], row["mean_logprob"]
        print(
            f"speculation {method}: {tokens['sections']} tokens in {len(HEADINGS)} sections {seconds['sections']['median']:.2f} s, "
            f"{tokens['plain']} plain {seconds['plain']['median']:.2f} s: {row['ratio']['median']:.2f} times as fast (goal 1.5)"
        )
        print(f"  prompt tokens {row['prompt_tokens']['sections']}, {row['cached_tokens']['sections']} of them cached")
        print("  log-probability per token: " + ", ".join(f"{name} {value['median']:.3f}" for name, value in logprob.items()))
    result = {**provenance("sections", sys.argv), "engine": description, "question": QUESTION, "headings": HEADINGS}
    result |= {"tokens": options.tokens, "turns": options.turns, "temperature": options.temperature, "by_speculation": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
