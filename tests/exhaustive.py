"""Suites that repeat one check by the hundred: a fixed part of them runs in CI, all of them under ``make exhaustive``.

``python -m tests.exhaustive`` prints what either covers; ``--files`` prints the files of the suites.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Suite(NamedTuple):
    ci: int  # repeats in CI, the first ones of the full run
    full: int
    unit: str
    file: str


SUITES = {
    "scheduler": Suite(96, 300, "seeds of 500 random steps with random features", "tests/scheduling/test_oracle.py"),
    "acceptance": Suite(
        12_500, 50_000, "outputs of four sampled tokens per rule", "tests/speculative/acceptance/test_chi_square.py"
    ),
    "drafters": Suite(160, 500, "prompts per drafter, in eight kinds of settings", "tests/engine/test_speculation.py"),
    "threads": Suite(90, 1_200, "mixed calls of six threads on one LLM", "tests/entrypoints/test_threads.py"),
    "async requests": Suite(200, 2_000, "requests with random cancels from two event loops", "tests/entrypoints/test_threads.py"),
    "interrupts": Suite(60, 2_000, "interrupts at random moments", "tests/entrypoints/test_interrupts.py"),
    "faults": Suite(3, 24, "engines, each with an exception at every call of a step", "tests/scheduling/test_faults.py"),
    "steps": Suite(
        1, 60, "cuts into random steps, per instruction set, dtype and quantisation", "tests/runners/backends/test_native.py"
    ),
    "bad words": Suite(120, 2_000, "texts of 16 tokens per kind of tokenizer", "tests/sampling/test_bad_words.py"),
    "gguf tokenizers": Suite(1_000, 20_000, "tokenizers of GGUF files with mutated metadata", "tests/text/test_gguf_vocabulary.py"),
    "compressed-tensors": Suite(
        100, 1_000, "damaged checkpoints of every kind", "tests/checkpoints/quantized/test_compressed_tensors.py"
    ),
    "batches": Suite(108, 306, "random batches over nine formats and ways to run", "tests/engine/test_independence.py"),
    "kv files": Suite(400, 5_000, "damaged files of saved KV blocks", "tests/entrypoints/test_kv_files.py"),
    "guides": Suite(40, 1_000, "guided requests among free ones with random settings, per drafter", "tests/engine/test_guides.py"),
    "engine kills": Suite(1, 40, "SIGKILLs of a served engine under four streams", "tests/serving/test_faults.py"),
    "canaries": Suite(400, 10_000, "requests, 64 in flight, a third cancelled at random", "tests/serving/test_canaries.py"),
    "thoughts": Suite(6, 100, "thoughts of each budget, and the answers after them", "tests/entrypoints/test_guided_chat.py"),
    "gguf damage": Suite(100, 1_000, "damaged GGUF files", "tests/checkpoints/gguf/test_damage.py"),
    "result cache cancels": Suite(
        600, 10_000, "cancelled calls of Redis behind random delays", "tests/caching/test_redis_store.py"
    ),
    "result cache tasks": Suite(
        400, 25_000, "tasks of an engine with Redis, 8 of 20 cancelled", "tests/caching/test_redis_in_front_of_an_engine.py"
    ),
    "quantisation": Suite(19, 91, "methods and schemes of a tiny model", "tests/compress/quantize/test_quantize.py"),
    "mixed precision": Suite(
        1, 4, "models of six layers with all 729 assignments measured", "tests/compress/quantize/mixed/test_search.py"
    ),
    "teacher cache kills": Suite(1, 20, "SIGKILLs of a teacher that is cached", "tests/compress/distill/test_cache_teacher.py"),
    "memory store": Suite(100_000, 100_000, "random operations per eviction order", "tests/caching/test_memory_store.py"),
    "sqlite store": Suite(6_000, 100_000, "random operations per eviction order", "tests/caching/test_sqlite_store.py"),
    "sqlite kills": Suite(10, 200, "SIGKILLs of a process that writes 50 results", "tests/caching/test_sqlite_kills.py"),
    "tournaments": Suite(100, 2_000, "simulated tournaments of eight variants, per case", "tests/prompts/test_tournament.py"),
    "comparisons": Suite(100, 2_000, "comparisons of six equal variants, corrected and not", "tests/prompts/test_evaluate.py"),
    "halvings": Suite(100, 2_000, "halvings of 64 arms, one of them the best", "tests/prompts/test_successive_halving.py"),
    "killed searches": Suite(4, 100, "searches, each ended at random points", "tests/prompts/test_instruction_search.py"),
    "instruction searches": Suite(25, 500, "simulated searches of 64 instructions", "tests/prompts/test_instruction_search.py"),
    "advice": Suite(24, 320, "outputs of the demo model, run again with the advice", "tests/entrypoints/test_diagnosis.py"),
    "feedback damage": Suite(60, 1_000, "damaged files of feedback", "tests/prompts/test_feedback.py"),
    "answers": Suite(
        10, 500, "answers per syntax of tool calls, read, cut and damaged", "tests/text/answers/test_answer_parser.py"
    ),
    "optimisation reports": Suite(200, 5_000, "damaged reports of optimisations", "tests/prompts/test_optimization_report.py"),
    "optimisation kills": Suite(2, 20, "SIGKILLs of an optimisation of a prompt", "tests/prompts/test_optimize_kills.py"),
    "distillation kills": Suite(2, 10, "SIGKILLs of a distillation", "tests/compress/distill/test_kills.py"),
    "schema instances": Suite(
        50, 300, "schemas, each with four valid and four invalid instances", "tests/sampling/guides/test_schema_instances.py"
    ),
    "schemas": Suite(
        24, 300, "schemas sampled with and without drafts beside free requests", "tests/entrypoints/test_structured_outputs.py"
    ),
    "panels": Suite(0, 150, "expressions of dashboards evaluated by a real Prometheus", "tests/serving/metrics/test_prometheus.py"),
    "disconnects": Suite(50, 1_000, "clients that leave at random times", "tests/serving/safety/test_disconnects.py"),
    "generated requests": Suite(
        150,
        2_000,
        "requests from the OpenAPI document, valid and not, each with two canaries",
        "tests/serving/test_generated_requests.py",
    ),
    "poisoned fields": Suite(
        12, 1_000, "fields of bodies, each with 27 bad values; there are fewer", "tests/serving/test_poisoned_fields.py"
    ),
    "pruning kills": Suite(2, 10, "SIGKILLs of a gradual pruning", "tests/compress/prune/test_run.py"),
    "data kills": Suite(2, 20, "SIGKILLs of a teacher that makes data", "tests/cli/test_data.py"),
    "sqlite damage": Suite(60, 500, "damaged SQLite files", "tests/caching/test_sqlite_damage.py"),
}
EXHAUSTIVE = os.environ.get("HASTEN_EXHAUSTIVE") == "1"


def repeats(name: str) -> int:
    """Return how often a suite repeats its check in this run."""
    return SUITES[name].full if EXHAUSTIVE else SUITES[name].ci


def main() -> None:
    if "--files" in sys.argv:
        print(*{suite.file: None for suite in SUITES.values()})
        return
    print(f"{'suite':16}{'in CI':>8}{'exhaustive':>12}  what is repeated")
    for name, suite in SUITES.items():
        print(f"{name:16}{suite.ci:>8,}{suite.full:>12,}  {suite.unit} ({suite.file})")


if __name__ == "__main__":
    main()
