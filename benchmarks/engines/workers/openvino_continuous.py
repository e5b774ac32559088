"""openvino-genai's continuous batching, step by step, on the same exported model."""

import itertools
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai

from engines.workers.loop import Ids, Setup, Timed, work
from engines.workers.openvino_model import export, properties, versions


def config(tokens: int) -> openvino_genai.GenerationConfig:
    found = openvino_genai.GenerationConfig()
    found.max_new_tokens = found.min_new_tokens = tokens
    found.ignore_eos, found.do_sample = True, False
    return found


class OpenVinoGenAi:
    pipe: Any

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.numbers = itertools.count()

    def convert(self, setup: Setup) -> None:
        export(setup)

    def load(self, setup: Setup) -> dict[str, Any]:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 4
        scheduler.max_num_seqs = setup.sequences
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        self.pipe = openvino_genai.ContinuousBatchingPipeline(str(setup.converted), scheduler, "CPU", properties(setup), {})
        return versions()

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        self._forget()
        self.handles = [self._add(ids, tokens + 1 + len(prompts)) for ids in prompts]
        self.ahead: list[Ids] = [[] for _ in prompts]
        return self.step()

    def step(self) -> Ids:
        """One token of each; prompts may be read in different steps, then the early ones are ahead."""
        while not all(self.ahead):
            self.pipe.step()
            for handle, ids in zip(self.handles, self.ahead, strict=True):
                if handle.can_read():
                    for output in handle.read().values():
                        ids += output.generated_ids
        return [ids.pop(0) for ids in self.ahead]

    def _forget(self) -> None:
        for handle in self.handles:
            handle.cancel()
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        self.handles = []

    def _add(self, ids: Ids, tokens: int) -> Any:
        return self.pipe.add_request(next(self.numbers), openvino.Tensor(np.array([ids], np.int64)), config(tokens))

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        self._forget()
        inputs = [openvino.Tensor(np.array([ids], np.int64)) for ids in prompts]
        begin = time.perf_counter()
        results = self.pipe.generate(inputs, [config(length) for length in lengths])
        seconds = time.perf_counter() - begin
        found = [list(result.m_generation_ids[0]) for result in results]
        assert [len(ids) for ids in found] == lengths, [len(ids) for ids in found][:8]
        return Timed(seconds, [ids[0] for ids in found])


if __name__ == "__main__":
    work(OpenVinoGenAi())
