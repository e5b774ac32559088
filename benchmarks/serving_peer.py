"""The HTTP server beside OpenVINO GenAI's continuous batching in process, which pays for no server.

``python benchmarks/serving_peer.py --out benchmarks/results/serving-peer.json``

The model has the Qwen3-0.6B shape with random weights, in int8 on both sides. 32 requests at once, 64 prompt tokens and 64 output
tokens each, greedy. ``hasten serve`` streams to a client in a third process; OpenVINO's pipeline returns complete lists of tokens.
Both take turns, and the one that waits is stopped. OpenVINO is installed in its own environment below ``--work``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from engines import shapes
from engines.environment import python_of
from engines.process import Worker
from hasten.bench.provenance import provenance
from serving import OPTIONS, PROMPT_TOKENS, REQUESTS, TOKENS, Server, prompts
from structured_output import with_tokenizer

PROGRAM, WEIGHTS = "openvino_continuous", "int8"
WARM_UP = 2  # rounds, in which every block of the KV caches is used once


def load_peer(checkpoint: Path, work: Path, threads: int) -> tuple[Worker, dict[str, Any]]:
    """Return OpenVINO's process and its versions. Exports the model once."""
    converted = checkpoint.parent / f"{PROGRAM}-{WEIGHTS}"
    setup: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "converted": str(converted),
        "weights": WEIGHTS,
        "lm_head": WEIGHTS,
        "kv": None,
    }
    setup |= {"int8_activations": False, "threads": threads, "max_len": 1024, "sequences": REQUESTS}

    def start(log: str) -> Worker:
        file = work / "logs" / f"{PROGRAM}-{log}.log"
        return Worker(python_of("openvino", work), PROGRAM, threads=threads, log=file, cache=work)

    if not (converted / "done").exists():
        converted.mkdir(parents=True, exist_ok=True)
        exporter = start("export")
        exporter.call(command="convert", **setup)
        exporter.end()
        (converted / "done").touch()
    worker = start("run")
    return worker, worker.call(command="load", **setup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of checkpoints and environments")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = options.work.resolve()
    checkpoint = shapes.checkpoint("qwen3-0.6b", work, seed=0)
    peer, versions = load_peer(checkpoint, work, options.threads)
    folder = with_tokenizer(checkpoint, work / "structured-output")
    server = Server(str(folder), {**OPTIONS, "dtype": "bfloat16", "quantization": "int8", "threads": options.threads})
    served_rates, peer_rates = [], []
    for draw in range(WARM_UP + options.repeats):
        served = server.run(prompts(2 * draw), TOKENS, temperature=0.0)
        answer = peer.call(command="serve", prompts=prompts(2 * draw + 1), lengths=[TOKENS] * REQUESTS)
        served_rates.append(served["tokens"] / served["seconds"])
        peer_rates.append(REQUESTS * TOKENS / answer["seconds"])
    server.close()
    peer.end()
    served_rates, peer_rates = served_rates[WARM_UP:], peer_rates[WARM_UP:]
    ratios = [ours / theirs for ours, theirs in zip(served_rates, peer_rates, strict=True)]
    found = {
        "hasten_served_tokens_per_s": served_rates,
        "openvino_in_process_tokens_per_s": peer_rates,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
    }
    settings = {"requests": REQUESTS, "prompt_tokens": PROMPT_TOKENS, "output_tokens": TOKENS, "openvino": versions}
    result = {**provenance("serving-peer", sys.argv), **settings, **found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
