"""hasten through its public ``LLM``: one stream per sequence, and one token of each per step."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.quantised import write_fp8, write_gptq
from engines.workers.worker import Ids, Setup, Timed, run_worker
from hasten import LLM, Delta, SamplingParams

WRITERS = {"int4-g128": write_gptq, "fp8": write_fp8}


def params(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def source(setup: Setup) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint, and the options that say how its weights are multiplied."""
    if setup.weights == "bf16":
        return setup.checkpoint, {}
    if setup.weights in ("int8", "int4"):
        return setup.checkpoint, {"quantization": setup.weights}
    checkpoint = setup.converted if setup.weights in WRITERS else setup.converted / "model.gguf"
    return checkpoint, {"activations": "int8" if setup.int8_activations else "float"}


class Hasten:
    llm: LLM

    def __init__(self) -> None:
        self.streams: list[Iterator[Delta]] = []

    def convert(self, setup: Setup) -> None:
        """Write a quantised checkpoint; int8 and int4 are made of the original one while it loads."""
        if setup.weights in WRITERS:
            WRITERS[setup.weights](setup.checkpoint, setup.converted, lm_head=setup.lm_head == setup.weights)

    def load(self, setup: Setup) -> dict[str, Any]:
        # An 8-bit KV cache with integer weights, as OpenVINO has by default.
        kv_cache = {"kv_cache_dtype": "int8"} if setup.kv or setup.weights not in ("bf16", "fp8") else {}
        checkpoint, quantization = source(setup)
        self.llm = LLM(
            str(checkpoint),
            dtype="bfloat16",
            threads=setup.threads,
            speculative_method="off",  # outputs of random weights repeat themselves, so drafts would be accepted too often
            max_model_len=setup.max_len,
            max_num_seqs=setup.sequences,
            kv_cache_memory="1536MiB" if setup.sequences > 8 else "768MiB",
            **quantization,
            **kv_cache,
        )
        self.touch(setup.max_len)
        return {"engine": {name: value for name, value in self.llm.describe().items() if isinstance(value, str | int | float)}}

    def touch(self, max_len: int) -> None:
        """Write every KV block once before the measurement, as engines do that clear their cache at the start."""
        length = max_len - 2
        for i in range(-(-self.llm.describe()["kv_tokens"] // length)):
            # Prompts differ, so the prefix cache keeps the blocks of each and every block is used.
            self.llm.generate({"prompt_token_ids": [i + 1] * length}, params(1), use_tqdm=False)

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        self.streams.clear()  # a deleted stream ends its request
        self.llm.reset_prefix_cache()
        # A stream starts at its first next(), so earlier streams are ahead of later ones by some steps.
        self.streams = [self.llm.stream({"prompt_token_ids": ids}, params(tokens + 1 + len(prompts))) for ids in prompts]
        return self.step()

    def step(self) -> Ids:
        return [next(stream).token_ids[0] for stream in self.streams]

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        start = time.perf_counter()
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], [params(length) for length in lengths], use_tqdm=False
        )
        seconds = time.perf_counter() - start
        assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
        return Timed(seconds, [output.outputs[0].token_ids[0] for output in outputs])


if __name__ == "__main__":
    run_worker(Hasten())
