"""What the engine itself costs per step: everything but the model's own computation, split by part.

``python benchmarks/step_overhead.py --out benchmarks/results/step_overhead.json``

The demo model's tokenizer, scheduler and settings; steady decoding with stop strings that often begin and never end, every
delta consumed. In place of the model stands a runner that hands out prepared logits: the demo model's own, over held-out text.
``--model`` runs the model instead; its call is timed apart and taken off either way. Beside wall time stands the time that the
engine's thread was on a processor, which other work on the machine disturbs less.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hasten
from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.core.engine_options import EngineOptions
from hasten.core.plan import RunnerOutput, SlotMove, StepPlan
from hasten.engine import engine as engine_module
from hasten.engine.engine import Engine
from hasten.runners.backends.choose import choose_backend
from hasten.sampling.chain import Chain
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler

DEMO = Path(hasten.__file__).parent / "demo"
STOP = ("\nclass NeverEnds", "def never_ends(", "Observation:", "    return never")
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature, top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "temperature, top-p": {"temperature": 0.7, "top_p": 0.9},
    "temperature": {"temperature": 1.0},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "typical-p": {"temperature": 1.0, "typical_p": 0.9},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
}
PARTS = ("plan", "model", "sample", "accept", "commit", "report")
VOCAB = 151_936  # of the larger vocabulary that the sampler alone is measured with
Times = dict[str, list[tuple[float, float]]]  # part -> (wall, this thread's processor time) of each step, seconds


class PreparedLogits:
    """A ``Runner`` without a model: the next rows of a bank of logits, one per sampled row of the plan."""

    def __init__(self, bank_NV: Tensor) -> None:
        self._bank_NV, self._next = bank_NV, 0

    def run(self, plan: StepPlan) -> RunnerOutput:
        num_rows = len(plan.sampled_sequence_ids)
        if self._next + num_rows > len(self._bank_NV):
            self._next = self._next % 7 + 1  # other rows for each sequence than in the last round
        begin, self._next = self._next, self._next + num_rows
        return RunnerOutput(self._bank_NV[begin : begin + num_rows])

    def move(self, moves: Sequence[SlotMove]) -> None:
        raise AssertionError("nothing is drafted here")


def heldout() -> Iterator[str]:
    with (DEMO / "heldout.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def bank_of_logits(llm: LLM, num_rows: int) -> Tensor:
    """Logits of the demo model at every position of held-out text [num_rows, vocabulary], float32."""
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    found: list[Tensor] = []
    with torch.inference_mode():
        for text in heldout():
            ids = llm.tokenizer.encode(text)[:512]
            found.append(model(torch.tensor([ids])).logits[0].float())
            if sum(map(len, found)) >= num_rows:
                break
    return torch.cat(found)[:num_rows].contiguous()


def watch(owner: Any, name: str, part: str, times: Times) -> None:
    """Add up what each call of a method takes, as one entry of ``times[part]`` per step."""
    call: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return call(*arguments)
        finally:
            times[part].append((time.perf_counter() - wall, time.thread_time() - cpu))

    setattr(owner, name, timed)


class TimedSampler:
    """A sampler whose method can be replaced: ``Sampler`` is frozen."""

    def __init__(self, sampler: Sampler) -> None:
        self.sample = sampler.sample


def watch_parts(engine: Engine) -> Times:
    """Time the parts of ``Engine.step``, through its private names."""
    times: Times = defaultdict(list)
    engine._sampler = TimedSampler(engine._sampler)  # type: ignore[assignment]
    for owner, name, part in (
        (engine.scheduler, "plan", "plan"),
        (engine._runner, "run", "model"),
        (engine_module, "accept", "accept"),
        (engine._sampler, "sample", "sample"),
        (engine.scheduler, "commit", "commit"),
        (engine, "_report", "report"),
    ):
        watch(owner, name, part, times)
    return times


def measure(llm: LLM, settings: dict[str, Any], batch: int, waiting: int, steps: int, warmup: int) -> dict[str, Any]:
    """Medians over ``steps`` steps in which ``batch`` requests decode and ``waiting`` more wait for a seat."""
    engine, input_processor = llm.engine, llm._loaded.input_processor
    texts = heldout()
    params = SamplingParams(max_tokens=steps + warmup + 64, ignore_eos=True, stop=STOP, seed=0, **settings)
    prompts = [llm.tokenizer.encode(text)[:48] for text, _ in zip(texts, range(64), strict=False)]
    for i in range(batch + waiting):
        prompt = {"prompt_token_ids": prompts[i % len(prompts)]}
        engine.add(input_processor.request(f"{i}", prompt, params.replace(seed=i), arrival=engine.clock()))
    while engine.scheduler.num_running < batch or not all(entry.is_decoding for entry in engine.scheduler._running):
        engine.step()
    for _ in range(warmup):
        engine.step()
    times = watch_parts(engine)
    num_characters = 0
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.thread_time()
        deltas = engine.step()
        num_characters += sum(len(delta.text) for delta in deltas)
        times["step"].append((time.perf_counter() - wall, time.thread_time() - cpu))
        assert len(deltas) == batch and all(delta.finish_reason is None for delta in deltas)
    assert num_characters > steps * batch / 2
    for i in range(batch + waiting):
        engine.abort(f"{i}")
    times["accept"] = [(a - s, b - t) for (a, b), (s, t) in zip(times["accept"], times["sample"], strict=True)]
    times["engine"] = [(a - s, b - t) for (a, b), (s, t) in zip(times["step"], times["model"], strict=True)]
    return {
        part: {"wall_ms": median_ms(wall for wall, _ in times[part]), "thread_ms": median_ms(cpu for _, cpu in times[part])}
        for part in ("step", "engine", *PARTS)
    }


def median_ms(seconds: Iterator[float]) -> float:
    return round(1000 * statistics.median(seconds), 4)


def measure_sampler(settings: dict[str, Any], num_rows: int, repeats: int) -> dict[str, Any]:
    """The sampler alone over a large vocabulary: logits as peaked as those of language models, histories of 1,000 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(num_rows, VOCAB, generator=generator) * 2.5 + 4
    logits_RV[:, 1000:1040] += torch.linspace(14, 4, 40)
    history = torch.randint(0, VOCAB, (1000,), generator=generator).tolist()
    rows = [SamplingRow(SamplingParams(seed=i, **settings), history, 200, (0,), 0) for i in range(num_rows)]
    sampler, times = Sampler(choose_backend(EngineOptions()).token_selector(Chain())), []
    for _ in range(repeats + 3):
        wall, cpu = time.perf_counter(), time.thread_time()
        with torch.inference_mode():
            sampler.sample(logits_RV, rows)
        times.append((time.perf_counter() - wall, time.thread_time() - cpu))
    times = times[3:]
    return {"wall_ms": median_ms(wall for wall, _ in times), "thread_ms": median_ms(cpu for _, cpu in times)}


def measure_engine(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    bank_NV: Tensor | None = None
    for name in options.cases:
        for batch in options.batches:
            memory = {"kv_cache_memory": "1GiB", "max_model_len": 1024, "max_num_batched_tokens": 2048}
            llm = LLM("demo", max_num_seqs=batch, speculative_method="off", **memory)
            if not options.model:
                bank_NV = bank_of_logits(llm, 2048) if bank_NV is None else bank_NV
                llm.engine._runner = PreparedLogits(bank_NV)
            medians = measure(llm, CASES[name], batch, options.waiting, options.steps, options.warmup)
            found.append({"case": name, "batch": batch, "waiting": options.waiting, "steps": options.steps, **medians})
            wall = "  ".join(f"{part} {medians[part]['wall_ms']:.3f}" for part in PARTS)
            print(
                f"{name:26} batch {batch:3}: engine {medians['engine']['wall_ms']:7.3f} ms"
                f" (thread {medians['engine']['thread_ms']:7.3f})   {wall}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--waiting", type=int, default=0, help="requests that wait for a seat all the time")
    parser.add_argument("--model", action="store_true", help="run the demo model in place of prepared logits")
    parser.add_argument("--sampler-rows", type=int, nargs="*", default=[1, 8], help="rows of the sampler's own measurement")
    options = parser.parse_args()
    result = {
        **provenance("step_overhead", sys.argv),
        "threads": torch.get_num_threads(),
        "model": "demo" if options.model else "prepared logits of demo",
        "rows": measure_engine(options),
        "sampler": [],
    }
    for name in options.cases:
        for num_rows in options.sampler_rows:
            medians = measure_sampler(CASES[name], num_rows, 15)
            result["sampler"].append({"case": name, "rows": num_rows, "vocabulary": VOCAB, **medians})
            print(
                f"{name:26} sampler alone, {num_rows} x {VOCAB:,}: {medians['wall_ms']:.3f} ms (thread {medians['thread_ms']:.3f})"
            )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
