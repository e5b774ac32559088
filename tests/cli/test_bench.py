"""``hasten bench``: the printed numbers match the runs, and the JSON line has all settings."""

import json

SMALL = ("--input-len", "8", "--output-len", "4", "--repeats", "2", "--warmup", "0")


def test_throughput_counts_the_tokens_of_its_runs(hasten):
    ran = hasten("bench", "throughput", "demo", "--num-prompts", "3", *SMALL, "--seed", "9", "--json")
    assert ran.out.count("\n") == 1
    report = json.loads(ran.out)
    assert report["workload"] == {"num_prompts": 3, "input_len": 8, "output_len": 4, "shared_len": 0, "seed": 9}
    assert (report["benchmark"], report["repeats"], report["engine"]["model"]) == ("throughput", 2, "demo")
    seconds, rate = report["seconds"], report["output_tokens_per_second"]
    assert rate["max"] == 3 * 4 / seconds["min"]
    assert rate["min"] <= rate["median"] <= rate["max"]
    assert 0 < report["ttft"]["p50"] <= report["e2e"]["p50"] <= seconds["max"]
    assert {"commit", "hardware", "versions", "quality"} <= set(report)


def test_latency_prints_a_table(hasten):
    ran = hasten("bench", "latency", "demo", "--batch-size", "2", *SMALL)
    assert ran.code == 0
    assert [label for label in ("output tokens/s", "TTFT ms", "ITL ms", "E2E ms") if label not in ran.out] == []
    assert "2 requests with 8 prompt tokens and 4 output tokens" in ran.err


def test_a_workload_that_exceeds_the_context_is_refused(hasten):
    ran = hasten("bench", "latency", "demo", "--input-len", "5000")
    assert ran.code == 2
    assert "5000 + 128" in ran.err
    assert hasten("bench", "latency", "demo", "--batch-size", "0").code == 2
    assert "shared_len" in hasten("bench", "latency", "demo", "--shared-len", "128").err


def test_a_benchmark_has_no_result_cache(hasten):
    ran = hasten("bench", "latency", "demo", "--result-cache", "memory:")
    assert ran.code == 2
    assert "unknown option --result-cache" in ran.err
