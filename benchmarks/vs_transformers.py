"""Compare hasten with ``generate`` of transformers on the same random checkpoint and prompts.

``python benchmarks/vs_transformers.py --out benchmarks/results/vs_transformers.json``

The checkpoint has the shape of Qwen3-0.6B with random weights in bf16. Both engines decode greedily and ignore end-of-sequence
tokens, so the work does not depend on the output. The quality of each engine is its mean KL divergence from a float32 run of
the same weights.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.layers.attention import DenseContext
from hasten.models.load import load_decoder
from hasten.ops.choose import choose_ops

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
BLOCK_SIZE = 16
Ids = list[int]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Prompts, and the number of output tokens of each."""

    name: str
    name_zh: str
    prompts: list[Ids]
    lengths: list[int]


def workloads(seed: int) -> list[Workload]:
    rng = random.Random(seed)

    def ids(count: int) -> Ids:
        return [rng.randrange(1000, SHAPE["vocab_size"] - 1000) for _ in range(count)]

    shared = ids(1000)
    lengths = [rng.randint(16, 256) for _ in range(64)]
    return [
        Workload("decode, batch 1 (32 in, 48 out)", "解码，批大小 1（输入 32，输出 48）", [ids(32)], [48]),
        Workload(
            "64 requests, 16 to 256 tokens out, 16 at a time",
            "64 个请求，输出 16 至 256 个 token，同时运行 16 个",
            [ids(rng.randint(16, 64)) for _ in lengths],
            lengths,
        ),
        Workload(
            "16 prompts, 1,000 tokens shared and 32 own, 16 out",
            "16 个并发提示，共享 1,000 个 token，各自 32 个，输出 16 个",
            [shared + ids(32) for _ in range(16)],
            [16] * 16,
        ),
    ]


def make_checkpoint(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = Qwen3Config(**SHAPE, dtype="bfloat16", bos_token_id=None, eos_token_id=None)
    with torch.device("meta"):
        model: Any = Qwen3ForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    model.tie_weights()  # undone by to_empty
    model.save_pretrained(folder)


class Hasten:
    def __init__(self, folder: Path) -> None:
        memory = {"block_size": BLOCK_SIZE, "kv_cache_memory": "1GiB", "max_model_len": 2048}
        self.llm = LLM(str(folder), dtype="bfloat16", max_num_seqs=16, speculative_method="off", **memory)

    def run(self, workload: Workload) -> dict[str, Any]:
        self.llm.reset_prefix_cache()
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in workload.lengths]
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in workload.prompts], params, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == workload.lengths
        metrics = [output.metrics for output in outputs]
        return {
            "computed_prompt_tokens": sum(m.num_prompt_tokens - m.num_cached_tokens for m in metrics),
            "first_token": statistics.median(m.ttft for m in metrics if m.ttft is not None),
        }


class Transformers:
    """``generate`` with static batches of 16 in arrival order, each until its longest output is complete."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def run(self, workload: Workload) -> dict[str, Any]:
        for begin in range(0, len(workload.prompts), 16):
            prompts, length = workload.prompts[begin : begin + 16], max(workload.lengths[begin : begin + 16])
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
            )
            assert out.shape[1] == width + length
        return {}


class ContinuousTransformers:
    """Continuous batching of transformers, ``generate_batch``."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, workload: Workload) -> dict[str, Any]:
        from transformers import GenerationConfig

        # All requests share one length; the longest would be unfair, so it is the mean.
        mean = round(statistics.fmean(workload.lengths))
        config = GenerationConfig(max_new_tokens=mean, do_sample=False, eos_token_id=-1, pad_token_id=0)
        out = self.model.generate_batch(inputs=workload.prompts, generation_config=config, progress_bar=False)
        assert len(out) == len(workload.prompts), f"{len(out)} of {len(workload.prompts)} answers"
        return {"tokens_per_answer": mean}


def timed(run: Callable[[Workload], dict[str, Any]], workload: Workload) -> dict[str, Any]:
    start = time.perf_counter()
    result = run(workload)
    return {"seconds": time.perf_counter() - start, **result}


def decode_seconds(run: Callable[[Workload], dict[str, Any]], workload: Workload) -> dict[str, Any]:
    """Return seconds per token after the first: the time of a full output minus that of one token."""
    one = timed(run, dataclasses.replace(workload, lengths=[1]))
    full = timed(run, workload)
    return {"seconds": (full["seconds"] - one["seconds"]) / (workload.lengths[0] - 1)}


def kl_to_float32(folder: Path, bf16: PreTrainedModel, seed: int) -> dict[str, float]:
    """Return the mean KL(float32 ‖ engine) and the top-1 agreement, on 4 random prompts of 48 tokens."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(SHAPE["vocab_size"]) for _ in range(48)] for _ in range(4)]
    ops, _ = choose_ops()
    decoder = load_decoder(folder, dtype="bfloat16", ops=ops).decoder
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums = {"hasten_kl": 0.0, "transformers_kl": 0.0, "hasten_top1": 0.0, "transformers_top1": 0.0}
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor(prompt)
            reference_logp = reference(ids[None]).logits[0].log_softmax(-1)
            context = DenseContext(ops, decoder.rotary, [len(prompt)])
            logits = {
                "hasten": decoder.head(decoder.run(decoder.embed(ids), context.positions_T, context)),
                "transformers": bf16(ids[None]).logits[0].float(),
            }
            for name, engine_logits in logits.items():
                divergence = (reference_logp.exp() * (reference_logp - engine_logits.log_softmax(-1))).sum(-1).mean()
                sums[f"{name}_kl"] += float(divergence) / len(prompts)
                sums[f"{name}_top1"] += float((engine_logits.argmax(-1) == reference_logp.argmax(-1)).float().mean()) / len(prompts)
    return {name: float(f"{value:.3g}") for name, value in sums.items()}


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "runs": runs}


def compare(workload: Workload, hasten: Hasten, transformers: Transformers, repeats: int) -> dict[str, Any]:
    """Return one row of medians.

    The engines alternate, and hasten runs once more at the end to reveal a drift of the machine.
    """
    single = len(workload.prompts) == 1
    measure = decode_seconds if single else timed
    hasten_runs, transformers_runs = [], []
    repeats = 5 * repeats if single else repeats
    for repeat in range(repeats):
        hasten_runs.append(measure(hasten.run, workload))
        transformers_runs.append(measure(transformers.run, workload))
        if repeat == repeats - 1:
            hasten_runs.append(measure(hasten.run, workload))
        print(
            f"{workload.name}: {repeat + 1}/{repeats}: hasten {hasten_runs[-1]['seconds']:.3f} s, "
            f"transformers {transformers_runs[-1]['seconds']:.3f} s",
            flush=True,
        )
    tokens = 1 if single else sum(workload.lengths)
    medians = [statistics.median(run["seconds"] for run in runs) for runs in (hasten_runs, transformers_runs)]
    return {
        "work": workload.name,
        "work_zh": workload.name_zh,
        "hasten": f"{tokens / medians[0]:.1f} tokens/s",
        "transformers": f"{tokens / medians[1]:.1f} tokens/s",
        "ratio": medians[1] / medians[0],
        "hasten_seconds": spread(hasten_runs),
        "transformers_seconds": spread(transformers_runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vs_transformers.json")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of each workload; the short one runs five times as often")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="folder of the random checkpoint, which is made if it does not exist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or Path(scratch)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, options.seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        model.generation_config.eos_token_id = None
        quality = kl_to_float32(folder, model, options.seed)
        print(quality, flush=True)
        hasten, transformers = Hasten(folder), Transformers(model)
        one, mixed, shared = workloads(options.seed)
        warmup = dataclasses.replace(mixed, prompts=mixed.prompts[:16], lengths=[2] * 16)
        for engine in (hasten, transformers):
            engine.run(warmup)
        result = {
            **provenance("vs_transformers", sys.argv),
            "threads": torch.get_num_threads(),
            "shape": SHAPE,
            "dtype": "bfloat16",
            "seed": options.seed,
            "repeats": options.repeats,
            "quality": quality,
            "rows": [compare(workload, hasten, transformers, options.repeats) for workload in (one, mixed, shared)],
        }
        write(options.out, result)
        try:
            result["generate_batch"] = timed(ContinuousTransformers(model).run, mixed)
        except Exception as error:  # the result records whether it runs on this machine
            result["generate_batch"] = {"failed": f"{type(error).__name__}: {error}"}
        print(result["generate_batch"], flush=True)
        write(options.out, result)


def write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
