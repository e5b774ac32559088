"""torch.compile with a model of transformers: a static cache and one compiled step.

Weights are frozen, in bf16, int8 or ATen's int4. Prompts are computed without compilation, which would take minutes for each
length, and are not compared.
"""

from typing import Any

import torch
import torch._inductor.config as inductor
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, StaticCache

from engines.workers.worker import Ids, Setup, run_worker

GROUP = 128


class Int8Linear(nn.Module):
    """Weight-only, one scale per output channel, ``aten::_weight_int8pack_mm``."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        scale_N = weight_NK.float().abs().amax(1).clamp_min(1e-8) / 127
        self.register_buffer("weight_NK", (weight_NK.float() / scale_N[:, None]).round().to(torch.int8))
        self.register_buffer("scale_N", scale_N.to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.ops.aten._weight_int8pack_mm(flat, self.weight_NK, self.scale_N)
        return out.view(*x.shape[:-1], -1)


class Int4Linear(nn.Module):
    """Weight-only, ``aten::_weight_int4pack_mm_for_cpu``: value = (q - 8) * scale + zero, q of 0 to 15."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        rows, columns = weight_NK.shape
        grouped = weight_NK.float().view(rows, columns // GROUP, GROUP)
        low, high = grouped.amin(2), grouped.amax(2)
        scale = (high - low).clamp_min(1e-6) / 15
        q = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(rows, columns)
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 2))
        zero = low + 8 * scale
        self.register_buffer("scale_zero", torch.stack([scale, zero], 2).transpose(0, 1).contiguous().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.weight, GROUP, self.scale_zero)
        return out.view(*x.shape[:-1], -1)


LINEAR: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


class TorchCompile:
    model: Any

    def __init__(self) -> None:
        self.compiled: Any = None
        self.caches: dict[tuple[int, int], StaticCache] = {}

    def convert(self, setup: Setup) -> None:
        """Weights are quantised while they load."""

    @torch.no_grad()
    def load(self, setup: Setup) -> dict[str, Any]:
        torch.set_num_threads(setup.threads)
        inductor.freezing = True
        torch._dynamo.config.cache_size_limit = 64
        self.model = AutoModelForCausalLM.from_pretrained(setup.checkpoint, dtype=torch.bfloat16).eval()
        if setup.weights in LINEAR:
            for name, module in list(self.model.named_modules()):
                if isinstance(module, nn.Linear):
                    self.model.set_submodule(name, LINEAR[setup.weights](module.weight))
        self.compiled = torch.compile(self._forward, dynamic=False)
        return {"transformers": transformers.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}

    def _forward(self, ids_B1: Tensor, position_B1: Tensor, cache: StaticCache) -> Tensor:
        logits = self.model(ids_B1, position_ids=position_B1, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    @torch.no_grad()
    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        ids = torch.tensor(prompts)
        # All repeats of a workload share one cache, because the step is compiled for its size and address.
        size = (ids.shape[0], -(-(ids.shape[1] + tokens + 1) // 128) * 128)
        if size not in self.caches:
            self.caches[size] = StaticCache(self.model.config, max_cache_len=size[1])
        self.cache = self.caches[size]
        self.cache.reset()
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.last = out.logits[:, -1].argmax(-1, keepdim=True)
        self.position = torch.full((len(prompts), 1), ids.shape[1])
        return self.last.flatten().tolist()

    @torch.no_grad()
    def step(self) -> Ids:
        self.last = self.compiled(self.last, self.position, self.cache).clone()
        self.position = self.position + 1
        return self.last.flatten().tolist()


if __name__ == "__main__":
    run_worker(TorchCompile())
