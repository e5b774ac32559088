"""Continuous batching of openvino-genai, step by step, with the model that optimum-intel exported."""

import itertools
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai

from engines.workers.openvino_model import export, properties, versions
from engines.workers.worker import Ids, Setup, Timed, run_worker


def config(tokens: int) -> openvino_genai.GenerationConfig:
    generation = openvino_genai.GenerationConfig()
    generation.max_new_tokens = generation.min_new_tokens = tokens
    generation.ignore_eos, generation.do_sample = True, False
    return generation


class OpenVinoGenAi:
    pipe: Any

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.request_ids = itertools.count()

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
        self._cancel_all()
        self.handles = [self._add(ids, tokens + 1 + len(prompts)) for ids in prompts]
        self.unread: list[Ids] = [[] for _ in prompts]  # generated tokens that ``step`` has not returned
        return self.step()

    def step(self) -> Ids:
        """Return one token of each sequence.

        Prompts may be computed in different steps, so some sequences are ahead.
        """
        while not all(self.unread):
            self.pipe.step()
            for handle, ids in zip(self.handles, self.unread, strict=True):
                if handle.can_read():
                    for output in handle.read().values():
                        ids += output.generated_ids
        return [ids.pop(0) for ids in self.unread]

    def _cancel_all(self) -> None:
        for handle in self.handles:
            handle.cancel()
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        self.handles = []

    def _add(self, ids: Ids, tokens: int) -> Any:
        return self.pipe.add_request(next(self.request_ids), openvino.Tensor(np.array([ids], np.int64)), config(tokens))

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        self._cancel_all()
        inputs = [openvino.Tensor(np.array([ids], np.int64)) for ids in prompts]
        start = time.perf_counter()
        results = self.pipe.generate(inputs, [config(length) for length in lengths])
        seconds = time.perf_counter() - start
        outputs = [list(result.m_generation_ids[0]) for result in results]
        assert [len(ids) for ids in outputs] == lengths, [len(ids) for ids in outputs][:8]
        return Timed(seconds, [ids[0] for ids in outputs])


if __name__ == "__main__":
    run_worker(OpenVinoGenAi())
