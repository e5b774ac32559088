"""hasten itself, through its public ``LLM``: one stream per sequence, so that a step of the engine is one token of each."""

import time
from collections.abc import Iterator
from typing import Any

from engines.workers.loop import Ids, Setup, Timed, work
from hasten import LLM, Delta, SamplingParams


def params(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


class Hasten:
    llm: LLM

    def __init__(self) -> None:
        self.streams: list[Iterator[Delta]] = []

    def convert(self, setup: Setup) -> None:
        """Weights are quantised while they load."""

    def load(self, setup: Setup) -> dict[str, Any]:
        quantised = {"quantization": setup.weights} if setup.weights != "bf16" else {}
        # As OpenVINO does unasked, and in bf16 too: with quantised weights, keys and values are of 8 bits.
        cache = {"kv_cache_dtype": "int8"} if setup.kv or quantised else {}
        self.llm = LLM(
            str(setup.checkpoint),
            dtype="bfloat16",
            threads=setup.threads,
            speculative_method="off",  # with random weights answers go in circles, and would be guessed too well
            max_model_len=setup.room,
            max_num_seqs=setup.sequences,
            kv_cache_memory="1536MiB" if setup.sequences > 8 else "768MiB",
            **quantised,
            **cache,
        )
        self.touch(setup.room)
        return {"engine": {name: value for name, value in self.llm.describe().items() if isinstance(value, str | int | float)}}

    def touch(self, room: int) -> None:
        """Every KV block is written once before the clock runs, as in engines that clear theirs when they start."""
        length = room - 2
        for i in range(-(-self.llm.describe()["kv_tokens"] // length)):
            # Different prompts: the prefix cache keeps each until the pool is full, so each takes blocks of its own.
            self.llm.generate({"prompt_token_ids": [i + 1] * length}, params(1), use_tqdm=False)

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        self.streams.clear()  # a stream that nobody holds ends its request
        self.llm.reset_prefix_cache()
        # Each prompt is read when its stream is first asked; those asked earlier run ahead by the others' steps.
        self.streams = [self.llm.stream({"prompt_token_ids": ids}, params(tokens + 1 + len(prompts))) for ids in prompts]
        return self.step()

    def step(self) -> Ids:
        return [next(stream).token_ids[0] for stream in self.streams]

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        begin = time.perf_counter()
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], [params(length) for length in lengths], use_tqdm=False
        )
        seconds = time.perf_counter() - begin
        assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
        return Timed(seconds, [output.outputs[0].token_ids[0] for output in outputs])


if __name__ == "__main__":
    work(Hasten())
