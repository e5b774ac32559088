"""transformers' ``generate`` in bf16, and its continuous batching for the mixed requests."""

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from engines.workers.loop import Ids, Setup, Timed, work


class Stamps(StoppingCriteria):
    """Notes when each token came; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Transformers:
    model: Any
    manager: Any = None

    def convert(self, setup: Setup) -> None:
        """It reads the checkpoint as it is."""

    def load(self, setup: Setup) -> dict[str, Any]:
        torch.set_num_threads(setup.threads)
        self.model = AutoModelForCausalLM.from_pretrained(setup.checkpoint, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None
        return {"transformers": transformers.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}

    @torch.inference_mode()
    def decode(self, prompts: list[Ids], tokens: int) -> Timed:
        """``tokens`` after the first of each. The prompts are equally long."""
        ids, stamps = torch.tensor(prompts), Stamps()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[stamps],
        )
        assert out.shape[1] == ids.shape[1] + tokens + 1 == ids.shape[1] + len(stamps.times)
        return Timed(stamps.times[-1] - stamps.times[0], out[:, ids.shape[1]].tolist())

    def prefill(self, prompt: Ids) -> Timed:
        begin = time.perf_counter()
        first = self.decode([prompt], 0).first
        return Timed(time.perf_counter() - begin, first)

    def serve(self, prompts: list[Ids], lengths: list[int]) -> Timed:
        """Its manager lives on from the first call to the last, so that only the first one, the warm-up, builds the cache."""
        if self.manager is None:
            config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
            # Left to itself it takes most of the memory for keys and values: room for all requests here is 128 x 200 tokens.
            batching = ContinuousBatchingConfig(page_size=128, num_blocks=200, max_batch_tokens=2048)
            self.manager = self.model.init_continuous_batching(config, batching)
            self.manager.start()
        begin = time.perf_counter()
        names = [self.manager.add_request(p, max_new_tokens=n, eos_token_id=-1) for p, n in zip(prompts, lengths, strict=True)]
        found: dict[str, Ids] = {}
        for result in self.manager:
            if result.error is not None:
                raise RuntimeError(str(result.error))
            if result.is_finished():
                found[result.request_id] = result.generated_tokens
            if len(found) == len(names):
                break
        seconds = time.perf_counter() - begin
        assert [len(found[name]) for name in names] == lengths
        return Timed(seconds, [found[name][0] for name in names])


if __name__ == "__main__":
    work(Transformers())
