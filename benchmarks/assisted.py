"""Guessing ahead in hasten and in transformers: one pair of models, the same prompts, each against its own plain decoding.

``python benchmarks/assisted.py grown/demo --draft-model grown/draft --out assisted.json``

Batch 1, greedy, in the checkpoint's own dtype on both sides (transformers' assisted generation takes one request at a time). In
each turn all engines get the same prompt, one after the other, the first one another each time. Seconds include reading the
prompt. Works are those of ``speculation.py``. transformers' answers with guesses may differ from its own without: the share of
turns in which they do is reported.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.bench.report import spread
from speculation import WORKS, interval, prompts

Engine = Callable[[list[int]], list[int]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft-model", required=True)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def ours(options: argparse.Namespace, speculation: str) -> tuple[LLM, Engine]:
    draft = {"draft_model": options.draft_model} if speculation == "draft_model" else {}
    limits = {"threads": options.threads, "kv_cache_memory": "512MiB", "max_model_len": 512}
    llm = LLM(options.model, speculative_method=speculation, **limits, **draft)
    params = SamplingParams(temperature=0.0, max_tokens=options.tokens, ignore_eos=True)

    def answer(ids: list[int]) -> list[int]:
        return list(llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0].outputs[0].token_ids)

    return llm, answer


def theirs(options: argparse.Namespace) -> dict[str, Engine]:
    torch.set_num_threads(options.threads)
    model, assistant = (AutoModelForCausalLM.from_pretrained(p, dtype="auto").eval() for p in (options.model, options.draft_model))
    kinds: dict[str, dict[str, Any]] = {
        "transformers": {},
        "transformers, assistant": {"assistant_model": assistant},
        "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
    }
    settings = {"do_sample": False, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "pad_token_id": 0}

    def engine(extra: dict[str, Any]) -> Engine:
        @torch.inference_mode()
        def answer(ids: list[int]) -> list[int]:
            asked = torch.tensor([ids])
            out = model.generate(asked, attention_mask=torch.ones_like(asked), **settings, **extra)
            return list(out[0, len(ids) :].tolist())

        return answer

    return {name: engine(extra) for name, extra in kinds.items()}


def main() -> None:
    options = parse()
    llm, plain = ours(options, "off")
    engines = {"hasten": plain}
    for name in ("draft_model", "prompt_lookup"):
        engines[f"hasten, {name}"] = ours(options, name)[1]
    engines |= theirs(options)
    names = list(engines)
    turns: list[dict[str, Any]] = []
    for turn in range(-1, options.turns):
        work = WORKS[turn % len(WORKS)]
        (ids,) = prompts(llm, work, 1, options.prompt, turn)
        seconds, answers = {}, {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.perf_counter()
            answers[name] = engines[name](ids)
            seconds[name] = time.perf_counter() - begin
        if turn >= 0:
            turns.append({"work": work, "seconds": seconds, "answers": answers})
    rows = []
    for name in names:
        base = name.split(",")[0]
        speed_up = [turn["seconds"][base] / turn["seconds"][name] for turn in turns]
        rate = spread([options.tokens / turn["seconds"][name] for turn in turns])
        changed = sum(turn["answers"][name] != turn["answers"][base] for turn in turns) / len(turns)
        rows.append({"engine": name, "tokens/s": rate, "speed_up": {**spread(speed_up), **interval(speed_up)}, "changed": changed})
        print(f"{name}: {rate['median']:.1f} tokens/s, {rows[-1]['speed_up']['median']:.2f}x, {changed:.0%} of answers changed")
    if options.out:
        written = {key: value for key, value in vars(options).items() if key != "out"}
        result = {**provenance("assisted", sys.argv), "options": written, "rows": rows, "turns": turns}
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
