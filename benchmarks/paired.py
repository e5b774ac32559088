"""Speed of this commit beside another one, in interleaved pairs of processes.

``python benchmarks/paired.py ../before/.venv/bin/python --model grown/demo --draft-model grown/draft --heads grown/eagle``

The argument is the Python of a virtual environment in which the other commit is installed. A pair is one process of each commit,
which go first in turn, and a process measures all figures. Ratios are this commit's speed over the other's. A figure fails if the
95 % percentile bootstrap interval of its mean ratio lies below the limit as a whole. ``--model`` is for the ``auto`` figures, where
drafting has to pay (see ``grow.py``). The others are of the demo model in int8: its steps are short, so the engine's time shows.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 0.97
RESAMPLES = 10_000
REPEATS = 3  # of a figure in a process; the median counts
AUTO_BATCHES = (1, 2, 4)
AUTO_PROMPT, AUTO_TOKENS, AUTO_ROUNDS = 192, 64, 6


def demo_figures() -> dict[str, float]:
    """Return decoding, prefill and step overhead of the demo model, as rates."""
    from hasten import SamplingParams

    llm = load("demo", {"max_model_len": 1024, "kv_cache_memory": "128MiB", "prefix_caching": False}, "off")
    rng = random.Random(0)
    vocab_size = llm.describe()["vocab_size"]

    def rate(batch: int, prompt: int, tokens: int, **settings: Any) -> tuple[float, float]:
        """Return output tokens per second, and steps per second of the engine's own time (without the native kernels)."""
        prompts = [{"prompt_token_ids": [rng.randrange(vocab_size) for _ in range(prompt)]} for _ in range(batch)]
        params = [SamplingParams(max_tokens=tokens, ignore_eos=True, seed=i, **settings) for i in range(batch)]
        runner = native_runner(llm.engine)
        steps, native, begin = llm.engine.stats.num_steps, runner.native_seconds, time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        own = seconds - (runner.native_seconds - native)
        return batch * tokens / seconds, (llm.engine.stats.num_steps - steps) / own

    def median(measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(REPEATS))

    sampling = {"temperature": 0.8, "top_p": 0.95}
    rate(8, 64, 32, **sampling)
    return {
        "decode, batch 1 (tokens/s)": median(lambda: rate(1, 16, 256, temperature=0.0)[0]),
        "decode, batch 8 (tokens/s)": median(lambda: rate(8, 16, 128, temperature=0.0)[0]),
        "prefill of 512 tokens (prompts/s)": median(lambda: rate(1, 512, 1, temperature=0.0)[0]),
        "engine's own time, batch 8 (steps/s)": median(lambda: rate(8, 16, 128, **sampling)[1]),
    }


def auto_figures(options: argparse.Namespace) -> dict[str, float]:
    """Return output tokens per second of ``auto`` on held-out code and documentation."""
    import hasten
    from hasten import SamplingParams

    drafters = {"draft_model": options.draft_model, "draft_heads": options.heads}
    sizes = {"max_model_len": 2 * (AUTO_PROMPT + AUTO_TOKENS), "kv_cache_memory": f"{80 * max(AUTO_BATCHES)}MiB"}
    llm = load(options.model, {**sizes, **{name: value for name, value in drafters.items() if value}}, "auto")
    lines = (Path(hasten.__file__).parent / "demo" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [llm.tokenizer.encode(json.loads(line)["text"]) for line in lines]
    texts = [ids for ids in texts if len(ids) > 2 * AUTO_PROMPT]
    figures = {}
    for batch in AUTO_BATCHES:
        rng, seconds = random.Random(batch), 0.0
        for turn in range(AUTO_ROUNDS + 1):
            prompts = []
            for _ in range(batch):
                ids = rng.choice(texts)
                start = rng.randrange(len(ids) - AUTO_PROMPT)
                prompts.append({"prompt_token_ids": ids[start : start + AUTO_PROMPT]})
            begin = time.perf_counter()
            params = SamplingParams(temperature=0.0, max_tokens=AUTO_TOKENS, ignore_eos=True)
            outputs = llm.generate(prompts, params, use_tqdm=False)
            if turn:  # the first round is a warm-up
                seconds += time.perf_counter() - begin - max(output.metrics.ttft or 0.0 for output in outputs)
        figures[f"auto, batch {batch} (tokens/s)"] = batch * AUTO_TOKENS * AUTO_ROUNDS / seconds
    return figures


def load(model: str, options: dict[str, Any], method: str) -> Any:
    """Load a model in int8. Commits before the options were renamed have other names for two of them."""
    from hasten import LLM, HastenError

    try:
        return LLM(model, quantization="int8", speculative_method=method, threads=2, **options)
    except HastenError as error:
        if "quantization" not in str(error):
            raise
        return LLM(model, quantize="int8", speculation=method, threads=2, **options)


def native_runner(engine: Any) -> Any:
    runner = engine._runner
    while not hasattr(runner, "native_seconds"):
        runner = runner._runner
    return runner


def worker_command(python: str, options: argparse.Namespace) -> list[str]:
    command = [python, __file__, python, "--worker"]
    for name in ("model", "draft_model", "heads"):
        if getattr(options, name):
            command += [f"--{name.replace('_', '-')}", getattr(options, name)]
    return command


def measure_pairs(options: argparse.Namespace) -> list[list[dict[str, float]]]:
    """Return [other commit's figures, this commit's figures] of each pair."""
    pythons, pairs, begin = (options.other, sys.executable), [], time.monotonic()
    for number in range(options.pairs):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found: list[dict[str, float]] = [{}, {}]
        for side in order:
            ran = subprocess.run(worker_command(pythons[side], options), capture_output=True, text=True, check=True)
            found[side] = json.loads(ran.stdout.splitlines()[-1])
        pairs.append(found)
        left = (time.monotonic() - begin) / (number + 1) * (options.pairs - number - 1)
        print(f"pair {number + 1} of {options.pairs}, about {left:.0f} s left", file=sys.stderr)
    return pairs


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", help="the Python of the other commit's virtual environment")
    parser.add_argument("--model", help="the model of the auto figures; without one they are left out")
    parser.add_argument("--draft-model")
    parser.add_argument("--heads", help="a folder of draft heads")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--limit", type=float, default=LIMIT, help="the smallest ratio that is no loss")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help="measure once and print the figures as JSON")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({**demo_figures(), **(auto_figures(options) if options.model else {})}))
        return
    pairs = measure_pairs(options)
    failed = False
    result = {}
    print(f"{'figure':40}{'before':>10}{'after':>10}{'ratio':>8}  95 % interval")
    for name in pairs[0][0]:
        before, after = ([pair[side][name] for pair in pairs] for side in (0, 1))
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        low, high = interval(ratios)
        failed |= high < options.limit
        result[name] = {"before": before, "after": after, "ratio": statistics.fmean(ratios), "interval": [low, high]}
        mark = "  FAILED" if high < options.limit else ""
        medians = f"{statistics.median(before):10.1f}{statistics.median(after):10.1f}"
        print(f"{name:40}{medians}{statistics.fmean(ratios):8.3f}  {low:.3f} to {high:.3f}{mark}")
    if options.out:
        from hasten.bench.provenance import provenance

        options.out.write_text(json.dumps({**provenance("paired", sys.argv), "figures": result}) + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
