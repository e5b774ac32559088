"""The DPO and GRPO losses of TRL and their gradients, on random log-probabilities: an oracle for ``hasten.training.preference``.

It needs ``pip install trl datasets accelerate``:
``python benchmarks/trl_preference_losses.py --out tests/training/preference/trl_losses.json``
"""

import argparse
import importlib.metadata
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, GRPOTrainer

from hasten.bench.provenance import provenance

PAIRS, GROUPS, GROUP_SIZE, LENGTH = 3, 2, 3, 5
DPO = (("sigmoid", 0.1), ("sigmoid", 2.0), ("ipo", 0.1), ("ipo", 0.7))
GRPO = (("grpo", 0.0), ("grpo", 0.04), ("bnpo", 0.3), ("dr_grpo", 0.04))


class Accelerator(SimpleNamespace):
    """Stands for one process."""

    device = torch.device("cpu")
    num_processes = 1

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mask(generator: torch.Generator, rows: int) -> torch.Tensor:
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=generator)
    return (torch.arange(LENGTH) < lengths[:, None]).long()


def dpo(logprobs: torch.Tensor, reference: torch.Tensor, mask_BS: torch.Tensor, loss: str, beta: float) -> dict[str, Any]:
    leaf = logprobs.clone().requires_grad_()
    chosen, rejected = (reference * mask_BS).sum(1).chunk(2)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        beta=beta,
        label_smoothing=0.0,
        loss_types=[loss],
        loss_weights=[1.0],
        use_weighting=False,
        _total_train_tokens=0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    first = torch.zeros(len(mask_BS), 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.zeros(len(mask_BS), LENGTH + 1, dtype=torch.long),
        "completion_mask": torch.cat([first, mask_BS], 1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }

    def model(**_: Any) -> Any:
        rows = leaf * mask_BS
        return SimpleNamespace(log_probs=rows, entropy=rows, mean_logits=rows, is_top1=rows > 0)

    found = DPOTrainer._compute_loss(trainer, model, inputs, False)
    (gradient,) = torch.autograd.grad(found, leaf)
    return {"loss_type": loss, "beta": beta, "loss": float(found.detach()), "gradient": gradient.tolist()}


def grpo(inputs: dict[str, torch.Tensor], loss: str, beta: float) -> dict[str, Any]:
    leaf = inputs["logprobs"].clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=loss,
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        max_completion_length=LENGTH,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    ids = torch.zeros_like(inputs["mask"])
    found = GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1] + 1,
            "completion_ids": ids,
            "completion_mask": inputs["mask"],
            "advantages": inputs["advantages"],
            "old_per_token_logps": inputs["sampled"],
            "ref_per_token_logps": inputs["reference"],
        },
    )
    (gradient,) = torch.autograd.grad(found, leaf)
    return {"loss_type": loss, "beta": beta, "loss": float(found.detach()), "gradient": gradient.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    pairs = {name: normal(generator, 2 * PAIRS, LENGTH) - 3 for name in ("logprobs", "reference")}
    mask_BS = mask(generator, 2 * PAIRS)
    dpo_cases = [dpo(pairs["logprobs"], pairs["reference"], mask_BS, loss, beta) for loss, beta in DPO]
    logprobs = normal(generator, GROUPS * GROUP_SIZE, LENGTH) - 3
    tokens = {
        "logprobs": logprobs,
        "sampled": logprobs + 0.3 * normal(generator, *logprobs.shape),  # some ratios are clipped, and some not
        "reference": logprobs + 0.5 * normal(generator, *logprobs.shape),
        "mask": mask(generator, len(logprobs)),
        "advantages": normal(generator, len(logprobs)),
    }
    grpo_cases = [grpo(tokens, loss, beta) for loss, beta in GRPO]
    result = {
        **provenance("trl_preference_losses", sys.argv),
        "trl": importlib.metadata.version("trl"),
        "dpo": {**{name: value.tolist() for name, value in pairs.items()}, "mask": mask_BS.tolist(), "cases": dpo_cases},
        "grpo": {**{name: value.tolist() for name, value in tokens.items()}, "cases": grpo_cases},
    }
    text = json.dumps(result) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
