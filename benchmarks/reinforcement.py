"""The reward of code that compiles, before and after reinforcement learning of the demo model, with its KL from the model before.

``python benchmarks/reinforcement.py --out benchmarks/results/reinforcement.json``

A prompt is the first line of a function of the shipped texts and the word ``return``. A tenth of the prompts is held out: only on
these is the reward measured. It is 1 if prompt and output are Python source.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hasten.bench.provenance import provenance
from hasten.quality.documents import CALIBRATION, HELD_OUT, read_texts
from hasten.training.callback import console_callback
from hasten.training.options import TrainOptions
from hasten.training.preference.recipes import PolicyRecipe
from hasten.training.preference.train import train_policy

FUNCTION = re.compile(r"^ *(def \w+\([^\n]*\):)\n", re.MULTILINE)


def prompts() -> list[str]:
    """Return the prompts, sorted."""
    heads = {match for file in (CALIBRATION, HELD_OUT) for text in read_texts(file) for match in FUNCTION.findall(text)}
    return [f"{head}\n    return" for head in sorted(heads)]


def measure(model: str, folder: Path, recipe: PolicyRecipe, options: TrainOptions) -> dict[str, Any]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"input": text}) + "\n" for text in prompts()), encoding="utf-8")
    begin = time.monotonic()
    with console_callback() as callback:
        result = train_policy(model, file, folder / f"seed{options.seed}", recipe, options, reward="compiles", callback=callback)
    assert result is not None
    names = ("score_before", "held_out_score", "evaluations", "num_tokens", "lr")
    return {"seed": options.seed, "seconds": time.monotonic() - begin, **{name: result.report[name] for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--algorithm", default="grpo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-kl", type=float, default=0.5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = PolicyRecipe(algorithm=options.algorithm, max_new_tokens=24, max_kl=options.max_kl)
    runs = []
    for seed in range(options.seeds):
        training = TrainOptions(
            steps=options.steps,
            batch=options.batch,
            seq_len=128,
            seed=seed,
            validation_fraction=0.1,
            patience=20,
            threads=options.threads,
        )
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(options.model, Path(folder), recipe, training))
        before, after = runs[-1]["score_before"], runs[-1]["held_out_score"]
        print(
            f"seed {seed}: reward {before['reward']:.3f} before, {after['reward']:.3f} after; "
            f"KL {after['kl_to_reference']:.3f} nats per token (limit {options.max_kl:g}); {runs[-1]['seconds']:.0f} s"
        )
    result = {**provenance("reinforcement", sys.argv), "model": options.model, "max_kl": options.max_kl, "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
