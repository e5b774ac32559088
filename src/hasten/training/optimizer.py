"""``Optimizer``: AdamW, or Muon for the matrices inside the layers and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hasten.training.names import OPTIMIZERS


class Optimizer:
    """AdamW with or without Muon, on parameters by name.

    AdamW is of Loshchilov & Hutter, 2019, Muon of Jordan et al., 2024. Muon orthogonalises the updates of matrices. Embeddings,
    lm_head, the head of a reward model, norms and biases stay with AdamW, as its authors advise. Its updates are scaled to the
    size of AdamW's, so both take the same learning rate (Liu et al., 2025, arXiv 2502.16982).
    """

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> None:
        assert name in OPTIMIZERS, name
        self._parameters = parameters
        matrices = [parameter for key, parameter in parameters.items() if name == "muon" and _is_inner_matrix(key, parameter)]
        chosen = set(map(id, matrices))
        others = [parameter for parameter in parameters.values() if id(parameter) not in chosen]
        self._parts: list[torch.optim.Optimizer] = []
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))

    def step(self, lr: float) -> None:
        """Update every parameter by its gradient, and drop the gradients."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (name of the moment, name of the parameter, value)."""
        for part in self._parts:
            for name, parameter in self._parameters.items():
                for moment, value in part.state.get(parameter, {}).items():
                    yield moment, name, value

    def restore(self, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put the moments of ``tensors`` in place: ``saved[parameter name][moment]``."""
        for part in self._parts:
            own = {id(parameter) for group in part.param_groups for parameter in group["params"]}
            for name, moments in saved.items():
                parameter = self._parameters[name]
                if id(parameter) in own:
                    part.state[parameter] = {moment: _beside(parameter, value) for moment, value in moments.items()}


def _beside(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """Return a copy on the parameter's device.

    The count of steps, a scalar, stays on the CPU as PyTorch has it.
    """
    return moment.to(parameter.device, copy=True) if moment.ndim else moment.clone()


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon may train a parameter: a matrix between hidden states."""
    return parameter.ndim == 2 and name != "score" and not name.startswith(("embedding.", "positions.", "lm_head."))
