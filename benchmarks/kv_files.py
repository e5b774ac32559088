"""Time to first token after a restart, with and without a saved prefix.

``python benchmarks/kv_files.py --model qwen3-0.6b --out benchmarks/results/kv_files.json``

Each start is a process of its own. Cold: the prompt of 2,000 tokens and 16 more is computed. Loaded: the KV cache of the
2,000 tokens is read from a file, which is in the page cache, as are the weights. Both generate the same tokens with the same
log-probabilities.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engines import shapes
from hasten.bench.provenance import provenance

PREFIX, REST = 2000, 16


def start(checkpoint: str, kv_file: str, mode: str) -> dict[str, Any]:
    """Load the model and return the times of one start: ``save``, ``cold`` or ``loaded``."""
    from hasten import LLM, SamplingParams

    ids = [(7919 * i + 13) % 5000 for i in range(PREFIX + REST)]
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=2)
    with LLM(checkpoint, dtype="bfloat16", max_model_len=4096, kv_cache_memory="1GiB") as llm:
        llm.generate({"prompt_token_ids": ids[-9:]}, params, use_tqdm=False)  # the first step of a process is slower
        load_seconds = 0.0
        if mode == "save":
            llm.save_kv({"prompt_token_ids": ids[:PREFIX]}, kv_file)
        if mode == "loaded":
            begin = time.perf_counter()
            llm.load_kv(kv_file)
            load_seconds = time.perf_counter() - begin
        output = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0]
        completion = output.outputs[0]
        return {
            "load_seconds": load_seconds,
            "ttft": output.metrics.ttft,
            "cached_tokens": output.metrics.num_cached_tokens,
            "tokens": [completion.token_ids, [token.logprob for token in completion.logprobs or ()]],
            "kernels": llm.describe()["kernels"],
        }


def measure(checkpoint: Path, kv_file: Path, mode: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--start", mode, "--checkpoint", str(checkpoint), "--kv-file", str(kv_file)]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--kv-file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.checkpoint, options.kv_file, options.start)))
        return
    checkpoint = shapes.checkpoint(options.model, options.work, seed=0)
    with tempfile.TemporaryDirectory() as name:
        kv_file = Path(name) / "prefix.safetensors"
        measure(checkpoint, kv_file, "save")
        runs = [(measure(checkpoint, kv_file, "cold"), measure(checkpoint, kv_file, "loaded")) for _ in range(options.repeats)]
        file_bytes = kv_file.stat().st_size
    assert all(cold["tokens"] == loaded["tokens"] for cold, loaded in runs), "the outputs differ"
    ttft = [loaded["ttft"] / cold["ttft"] for cold, loaded in runs]
    in_all = [(loaded["ttft"] + loaded["load_seconds"]) / cold["ttft"] for cold, loaded in runs]
    result = {
        **provenance("kv files", sys.argv),
        "model": options.model,
        "prefix": PREFIX,
        "kernels": runs[0][0]["kernels"],
        "file_bytes": file_bytes,
        "cached_tokens": runs[0][1]["cached_tokens"],
        "ttft_seconds": {
            "cold": statistics.median(cold["ttft"] for cold, _ in runs),
            "loaded": statistics.median(loaded["ttft"] for _, loaded in runs),
        },
        "load_seconds": statistics.median(loaded["load_seconds"] for _, loaded in runs),
        "ttft_ratio": statistics.median(ttft),
        "ratio_with_loading": statistics.median(in_all),
        "ratios": [ttft, in_all],
        "equal_outputs": True,
    }
    print(f"TTFT {result['ttft_ratio']:.3f} of cold (goal 0.1), with loading {result['ratio_with_loading']:.3f} (goal 0.5)")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
