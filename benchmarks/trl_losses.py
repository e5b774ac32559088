"""The generalised Jensen-Shannon loss of TRL and its gradients, on random logits.

They are an oracle for ``hasten.training.distill.losses``.

It needs ``pip install trl datasets accelerate``: ``python benchmarks/trl_losses.py --out tests/training/distill/trl_losses.json``
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch
from trl.experimental.gkd import GKDTrainer

from hasten.bench.provenance import provenance

ROWS, CLASSES = 3, 6
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (1.0, 2.5)


def case(student_RC: torch.Tensor, teacher_RC: torch.Tensor, beta: float, temperature: float) -> dict[str, Any]:
    """Return TRL's loss per row, and the gradient of their sum by the student's logits."""
    logits_RC = student_RC.clone().requires_grad_()
    loss_RC = GKDTrainer.generalized_jsd_loss(logits_RC, teacher_RC, beta=beta, temperature=temperature, reduction="none")
    (gradient_RC,) = torch.autograd.grad(loss_RC.sum(), logits_RC)
    return {"beta": beta, "temperature": temperature, "loss": loss_RC.sum(-1).tolist(), "gradient": gradient_RC.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    student_RC, teacher_RC = 4 * torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64)
    cases = [case(student_RC, teacher_RC, beta, temperature) for beta in BETAS for temperature in TEMPERATURES]
    logits = {"student_logits": student_RC.tolist(), "teacher_logits": teacher_RC.tolist()}
    result = {**provenance("trl_losses", sys.argv), "trl": importlib.metadata.version("trl"), **logits, "cases": cases}
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
