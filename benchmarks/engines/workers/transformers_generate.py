"""``generate`` of transformers in bf16, and its continuous batching for the mixed requests."""

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from engines.workers.worker import Ids, Setup, Timed, run_worker


class TokenTimes(StoppingCriteria):
    """Records the time of each token and never stops the generation."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Transformers:
    model: Any
    manager: Any = None

    def convert(self, setup: Setup) -> None:
        """Do nothing: transformers reads the checkpoint directly."""

    def load(self, setup: Setup) -> dict[str, Any]:
        torch.set_num_threads(setup.threads)
        self.model = AutoModelForCausalLM.from_pretrained(setup.checkpoint, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        return {"transformers": transformers.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}

    @torch.inference_mode()
    def decode(self, prompts: list[Ids], tokens: int) -> Timed:
        """Measure ``tokens`` tokens after the first of each prompt. The prompts have equal lengths."""
        ids, times = torch.tensor(prompts), TokenTimes()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[times],
        )
        assert out.shape[1] == ids.shape[1] + tokens + 1 == ids.shape[1] + len(times.times)
        return Timed(times.times[-1] - times.times[0], out[:, ids.shape[1]].tolist())

    def prefill(self, prompt: Ids) -> Timed:
        start = time.perf_counter()
        first = self.decode([prompt], 0).first
        return Timed(time.perf_counter() - start, first)

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        """Measure continuous batching.

        All calls share one manager, so that only the warm-up allocates the cache.
        """
        if self.manager is None:
            config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
            # The default takes most of the memory for the KV cache; 128 x 200 tokens are enough for all requests.
            batching = ContinuousBatchingConfig(page_size=128, num_blocks=200, max_batch_tokens=2048)
            self.manager = self.model.init_continuous_batching(config, batching)
            self.manager.start()
        start = time.perf_counter()
        request_ids = [
            self.manager.add_request(p, max_new_tokens=n, eos_token_id=-1) for p, n in zip(prompts, lengths, strict=True)
        ]
        outputs: dict[str, Ids] = {}
        for result in self.manager:
            if result.error is not None:
                raise RuntimeError(str(result.error))
            if result.is_finished():
                outputs[result.request_id] = result.generated_tokens
            if len(outputs) == len(request_ids):
                break
        seconds = time.perf_counter() - start
        assert [len(outputs[request_id]) for request_id in request_ids] == lengths
        return Timed(seconds, [outputs[request_id][0] for request_id in request_ids])


if __name__ == "__main__":
    run_worker(Transformers())
