"""Speculative decoding in hasten and transformers, each against its own plain decoding.

``python benchmarks/assisted.py grown/demo --draft-model grown/draft --out assisted.json``

Batch 1, greedy, in the checkpoint's dtype on both sides, since assisted generation in transformers takes one request at a time.
Every turn runs all engines on the same prompt, starting with another engine each time. Seconds include the prefill. The
workloads are those of ``speculation.py``. In transformers, speculation may change the output: the share of turns where it does
is reported.
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
from speculation import WORKLOADS, interval, prompts

Engine = Callable[[list[int]], list[int]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft-model", required=True)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each output")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def hasten_engine(options: argparse.Namespace, method: str) -> tuple[LLM, Engine]:
    draft = {"draft_model": options.draft_model} if method == "draft_model" else {}
    limits = {"threads": options.threads, "kv_cache_memory": "512MiB", "max_model_len": 512}
    llm = LLM(options.model, speculative_method=method, **limits, **draft)
    params = SamplingParams(temperature=0.0, max_tokens=options.tokens, ignore_eos=True)

    def generate(ids: list[int]) -> list[int]:
        return list(llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0].outputs[0].token_ids)

    return llm, generate


def transformers_engines(options: argparse.Namespace) -> dict[str, Engine]:
    torch.set_num_threads(options.threads)
    model, assistant = (AutoModelForCausalLM.from_pretrained(p, dtype="auto").eval() for p in (options.model, options.draft_model))
    methods: dict[str, dict[str, Any]] = {
        "transformers": {},
        "transformers, assistant": {"assistant_model": assistant},
        "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
    }
    settings = {"do_sample": False, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "pad_token_id": 0}

    def engine(method: dict[str, Any]) -> Engine:
        @torch.inference_mode()
        def generate(ids: list[int]) -> list[int]:
            inputs = torch.tensor([ids])
            out = model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings, **method)
            return list(out[0, len(ids) :].tolist())

        return generate

    return {name: engine(method) for name, method in methods.items()}


def main() -> None:
    options = parse()
    llm, plain = hasten_engine(options, "off")
    engines = {"hasten": plain}
    for name in ("draft_model", "prompt_lookup"):
        engines[f"hasten, {name}"] = hasten_engine(options, name)[1]
    engines |= transformers_engines(options)
    names = list(engines)
    turns: list[dict[str, Any]] = []
    for turn in range(-1, options.turns):
        workload = WORKLOADS[turn % len(WORKLOADS)]
        (ids,) = prompts(llm, workload, 1, options.prompt, turn)
        seconds, outputs = {}, {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            outputs[name] = engines[name](ids)
            seconds[name] = time.perf_counter() - start
        if turn >= 0:
            turns.append({"work": workload, "seconds": seconds, "answers": outputs})
    rows = []
    for name in names:
        base = name.split(",")[0]
        speed_up = [turn["seconds"][base] / turn["seconds"][name] for turn in turns]
        rate = spread([options.tokens / turn["seconds"][name] for turn in turns])
        changed = sum(turn["answers"][name] != turn["answers"][base] for turn in turns) / len(turns)
        rows.append({"engine": name, "tokens/s": rate, "speed_up": {**spread(speed_up), **interval(speed_up)}, "changed": changed})
        print(f"{name}: {rate['median']:.1f} tokens/s, {rows[-1]['speed_up']['median']:.2f}x, {changed:.0%} of outputs changed")
    if options.out:
        saved_options = {key: value for key, value in vars(options).items() if key != "out"}
        result = {**provenance("assisted", sys.argv), "options": saved_options, "rows": rows, "turns": turns}
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
