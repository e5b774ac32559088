"""What the HTTP server costs beside the engine alone: throughput, time to first token, and CPU of the front end.

``python benchmarks/serving.py --out benchmarks/results/serving.json``

The model has the Qwen3-0.6B shape with random weights in int8, or is the demo (``--model demo``). ``hasten serve`` runs as a
program; a third process sends the requests over HTTP and reads the streams. The engine alone is an ``LLM``. Both take turns.

throughput: 32 requests at once, 64 prompt tokens and 64 output tokens each, streamed; output tokens per second.
ttft: single requests, one after the other.
front_cpu: processor time of the server's front end per streamed token, in microseconds, of the 32 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engines import shapes
from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from structured_output import with_tokenizer

REQUESTS, PROMPT_TOKENS, TOKENS = 32, 64, 64
OPTIONS = {"max_model_len": 1024, "kv_cache_memory": "1GiB", "speculative_method": "off"}


def prompts(draw: int) -> list[list[int]]:
    """Return prompts that no earlier draw has, so that no prefix is cached."""
    return [[(7919 * i + 31 * j + 997 * draw) % 5000 + 300 for i in range(PROMPT_TOKENS)] for j in range(REQUESTS)]


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """``hasten serve`` as a program, and the client's process."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        command = [sys.executable, "-m", "hasten", "serve", f"bench={model}", "--port", "0", *flags]
        self._program = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._program.stderr is not None
        text = ""
        while "is loaded" not in text:
            line = self._program.stderr.readline()
            assert line, f"the server ended: {text}"
            text += line
        self.port = int(re.findall(r"http://[^ ]*:(\d+)", text)[0])
        self._client = subprocess.Popen(
            [sys.executable, __file__, "--client", str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, asked: list[list[int]], tokens: int, temperature: float = 0.8) -> dict[str, Any]:
        """Send all prompts at once; return the client's times and the front end's processor time."""
        before = cpu_seconds(self._program.pid)
        assert self._client.stdin is not None and self._client.stdout is not None
        self._client.stdin.write(json.dumps({"prompts": asked, "tokens": tokens, "temperature": temperature}) + "\n")
        self._client.stdin.flush()
        found: dict[str, Any] = json.loads(self._client.stdout.readline())
        return found | {"front_cpu": cpu_seconds(self._program.pid) - before}

    def close(self) -> None:
        self._client.kill()
        self._program.terminate()
        self._program.wait()


async def request(port: int, prompt: list[int], tokens: int, temperature: float) -> tuple[float, float, int]:
    """Return the seconds to the first event and to the end, and the output tokens."""
    body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": temperature, "seed": 1}
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
    text, first = b"", 0.0
    while part := await reader.read(1 << 16):
        text += part
        if not first and b"data: " in text:
            first = time.perf_counter() - begin
    writer.close()
    assert b"data: [DONE]" in text, text[-300:]
    return first, time.perf_counter() - begin, int(re.findall(rb'"completion_tokens":(\d+)', text)[-1])


async def client(port: int) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        begin = time.perf_counter()
        results = await asyncio.gather(
            *(request(port, prompt, order["tokens"], order["temperature"]) for prompt in order["prompts"])
        )
        seconds = time.perf_counter() - begin
        firsts, _, tokens = zip(*results, strict=True)
        print(json.dumps({"seconds": seconds, "ttft": statistics.median(firsts), "tokens": sum(tokens)}), flush=True)


def measure(model: str, options: dict[str, Any], repeats: int) -> dict[str, Any]:
    server = Server(model, options)
    numbers = iter(range(10**6))
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=TOKENS, ignore_eos=True)
    with LLM(model, **options) as llm:

        def alone() -> float:
            asked: list[Any] = [{"prompt_token_ids": each} for each in prompts(next(numbers))]
            begin = time.perf_counter()
            outputs = llm.generate(asked, params, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - begin)

        def alone_ttft() -> float:
            asked = {"prompt_token_ids": prompts(next(numbers))[0]}
            begin = time.perf_counter()
            stream = llm.stream(asked, params.replace(max_tokens=2))
            next(stream)
            found = time.perf_counter() - begin
            list(stream)
            return found

        alone(), server.run(prompts(next(numbers)), TOKENS)  # warm up
        speeds, cpu = [], []
        for _ in range(repeats):
            served = server.run(prompts(next(numbers)), TOKENS)
            assert served["tokens"] == REQUESTS * TOKENS
            speeds.append((alone(), served["tokens"] / served["seconds"]))
            cpu.append(1e6 * served["front_cpu"] / served["tokens"])
        ttfts = [(alone_ttft(), server.run(prompts(next(numbers))[:1], 2)["ttft"]) for _ in range(3 * repeats)]
    server.close()
    return {
        "alone_tokens_per_s": statistics.median(each for each, _ in speeds),
        "served_tokens_per_s": statistics.median(each for _, each in speeds),
        "throughput_ratio": statistics.median(served / alone for alone, served in speeds),
        "throughput_ratios": [served / alone for alone, served in speeds],
        "alone_ttft_ms": 1e3 * statistics.median(each for each, _ in ttfts),
        "served_ttft_ms": 1e3 * statistics.median(each for _, each in ttfts),
        "added_ttft_ms": 1e3 * statistics.median(served - alone for alone, served in ttfts),
        "front_cpu_us_per_token": statistics.median(cpu),
        "front_cpu_us_per_token_all": cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the checkpoint")
    parser.add_argument("--model", default="qwen3-0.6b", help="qwen3-0.6b (random weights, int8) or demo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        asyncio.run(client(options.client))
        return
    if options.model == "demo":
        found = measure("demo", {**OPTIONS, "quantization": None}, options.repeats)
    else:
        folder = with_tokenizer(shapes.checkpoint(options.model, options.work, seed=0), options.work / "structured-output")
        found = measure(str(folder), {**OPTIONS, "dtype": "bfloat16", "quantization": "int8"}, options.repeats)
    settings = {"requests": REQUESTS, "prompt_tokens": PROMPT_TOKENS, "output_tokens": TOKENS}
    result = {**provenance("serving", sys.argv), "model": options.model, **settings, **found}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
