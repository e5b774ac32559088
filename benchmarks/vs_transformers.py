"""hasten beside transformers' ``generate``: the same random checkpoint, the same prompts, one process, in turn A B A B.

``python benchmarks/vs_transformers.py --out benchmarks/results/vs_transformers.json``

The checkpoint has the shape of Qwen3-0.6B, random weights and bf16. Both engines decode greedily and past any
end-of-sequence token, so the work does not depend on what is said. The quality that goes with the speed is each engine's mean KL
divergence from a float32 run of the same weights.
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
class Work:
    """Prompts, and how many tokens each is to get."""

    name: str
    name_zh: str
    prompts: list[Ids]
    lengths: list[int]


def works(seed: int) -> list[Work]:
    draw = random.Random(seed)

    def ids(count: int) -> Ids:
        return [draw.randrange(1000, SHAPE["vocab_size"] - 1000) for _ in range(count)]

    shared = ids(1000)
    lengths = [draw.randint(16, 256) for _ in range(64)]
    return [
        Work("decode, batch 1 (32 in, 48 out)", "解码，批大小 1（输入 32，输出 48）", [ids(32)], [48]),
        Work(
            "64 requests, 16 to 256 tokens out, 16 at a time",
            "64 个请求，输出 16 至 256 个 token，同时运行 16 个",
            [ids(draw.randint(16, 64)) for _ in lengths],
            lengths,
        ),
        Work(
            "16 prompts at once, 1,000 tokens shared and 32 own, 16 out",
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

    def run(self, work: Work) -> dict[str, Any]:
        self.llm.reset_prefix_cache()
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in work.lengths]
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in work.prompts], params, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == work.lengths
        metrics = [output.metrics for output in outputs]
        return {
            "computed_prompt_tokens": sum(m.num_prompt_tokens - m.num_cached_tokens for m in metrics),
            "first_token": statistics.median(m.ttft for m in metrics if m.ttft is not None),
        }


class Transformers:
    """Static batches of 16 in arrival order, each until its longest answer is done: what ``generate`` offers."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def run(self, work: Work) -> dict[str, Any]:
        for begin in range(0, len(work.prompts), 16):
            prompts, length = work.prompts[begin : begin + 16], max(work.lengths[begin : begin + 16])
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
            )
            assert out.shape[1] == width + length
        return {}


class ContinuousTransformers:
    """transformers' own continuous batching, ``generate_batch``."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, work: Work) -> dict[str, Any]:
        from transformers import GenerationConfig

        # It takes one length for all requests; the longest would be unfair, so all get the mean.
        mean = round(statistics.fmean(work.lengths))
        config = GenerationConfig(max_new_tokens=mean, do_sample=False, eos_token_id=-1, pad_token_id=0)
        out = self.model.generate_batch(inputs=work.prompts, generation_config=config, progress_bar=False)
        assert len(out) == len(work.prompts), f"{len(out)} of {len(work.prompts)} answers"
        return {"tokens_per_answer": mean}


def timed(run: Callable[[Work], dict[str, Any]], work: Work) -> dict[str, Any]:
    begin = time.perf_counter()
    found = run(work)
    return {"seconds": time.perf_counter() - begin, **found}


def decode_seconds(run: Callable[[Work], dict[str, Any]], work: Work) -> dict[str, Any]:
    """Per token after the first: the time of the whole answer less that of an answer of one token."""
    one = timed(run, dataclasses.replace(work, lengths=[1]))
    whole = timed(run, work)
    return {"seconds": (whole["seconds"] - one["seconds"]) / (work.lengths[0] - 1)}


def kl_to_float32(folder: Path, bf16: PreTrainedModel, seed: int) -> dict[str, float]:
    """Mean over positions of KL(float32 ‖ engine), and the share of equal best tokens, on 4 random prompts of 48 tokens."""
    draw = random.Random(seed)
    prompts = [[draw.randrange(SHAPE["vocab_size"]) for _ in range(48)] for _ in range(4)]
    ops, _ = choose_ops()
    decoder = load_decoder(folder, dtype="bfloat16", ops=ops).decoder
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sums = {"hasten_kl": 0.0, "transformers_kl": 0.0, "hasten_top1": 0.0, "transformers_top1": 0.0}
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor(prompt)
            right = reference(ids[None]).logits[0].log_softmax(-1)
            context = DenseContext(ops, decoder.rotary, [len(prompt)])
            logits = {
                "hasten": decoder.head(decoder.run(decoder.embed(ids), context.positions_T, context)),
                "transformers": bf16(ids[None]).logits[0].float(),
            }
            for name, found in logits.items():
                divergence = (right.exp() * (right - found.log_softmax(-1))).sum(-1).mean()
                sums[f"{name}_kl"] += float(divergence) / len(prompts)
                sums[f"{name}_top1"] += float((found.argmax(-1) == right.argmax(-1)).float().mean()) / len(prompts)
    return {name: float(f"{value:.3g}") for name, value in sums.items()}


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "runs": runs}


def compare(work: Work, ours: Hasten, theirs: Transformers, repeats: int) -> dict[str, Any]:
    """One row: medians, in turn A B A B, hasten once more at the end so that a drift of the machine would show."""
    single = len(work.prompts) == 1
    measure = decode_seconds if single else timed
    a, b = [], []
    repeats = 5 * repeats if single else repeats
    for repeat in range(repeats):
        a.append(measure(ours.run, work))
        b.append(measure(theirs.run, work))
        if repeat == repeats - 1:
            a.append(measure(ours.run, work))
        print(
            f"{work.name}: {repeat + 1}/{repeats}: hasten {a[-1]['seconds']:.3f} s, transformers {b[-1]['seconds']:.3f} s",
            flush=True,
        )
    tokens = 1 if single else sum(work.lengths)
    rate = [f"{tokens / statistics.median(r['seconds'] for r in runs):.1f} tokens/s" for runs in (a, b)]
    return {
        "work": work.name,
        "work_zh": work.name_zh,
        "hasten": rate[0],
        "transformers": rate[1],
        "ratio": statistics.median(r["seconds"] for r in b) / statistics.median(r["seconds"] for r in a),
        "hasten_seconds": spread(a),
        "transformers_seconds": spread(b),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vs_transformers.json")
    parser.add_argument("--repeats", type=int, default=2, help="of each work; the short one is run five times as often")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="where the random checkpoint is, or is to be kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or Path(scratch)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, options.seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        model.generation_config.eos_token_id = None
        quality = kl_to_float32(folder, model, options.seed)
        print(quality, flush=True)
        ours, theirs = Hasten(folder), Transformers(model)
        one, mixed, shared = works(options.seed)
        warm = dataclasses.replace(mixed, prompts=mixed.prompts[:16], lengths=[2] * 16)
        for engine in (ours, theirs):
            engine.run(warm)
        result = {
            **provenance("vs_transformers", sys.argv),
            "threads": torch.get_num_threads(),
            "shape": SHAPE,
            "dtype": "bfloat16",
            "seed": options.seed,
            "repeats": options.repeats,
            "quality": quality,
            "rows": [compare(work, ours, theirs, options.repeats) for work in (one, mixed, shared)],
        }
        write(options.out, result)
        try:
            result["generate_batch"] = timed(ContinuousTransformers(model).run, mixed)
        except Exception as error:  # whether it runs on this machine at all is one of the findings
            result["generate_batch"] = {"failed": f"{type(error).__name__}: {error}"}
        print(result["generate_batch"], flush=True)
        write(options.out, result)


def write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
