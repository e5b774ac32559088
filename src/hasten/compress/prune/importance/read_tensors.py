"""``visit_reads``: the tensors that a model's matrices read, as it computes them.

Shape suffixes: T tokens · H query heads · D head dim · F neurons · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import Tensor, nn

from hasten.compress.prune.layer_subset import LayerSubset
from hasten.layers.linear import Linear
from hasten.layers.norm import Norm

Kind = Literal["heads", "neurons", "channels"]
Visit = Callable[[Kind, int, Tensor], None]


@contextmanager
def visit_reads(subset: LayerSubset, visit: Visit) -> Iterator[None]:
    """Call ``visit(kind, number, tensor)`` whenever the layers of ``subset`` run.

    ::

        heads, i      what the output projection of attention i reads, [T, H·D]
        neurons, i    what the last projection of feed-forward i reads, [T, F]
        channels, i   what norm i returns, [T, E]: two of each layer, then the final norm
    """
    with ExitStack() as stack:
        for number, layer in enumerate(subset.modules):
            stack.callback(layer.attention.out.register_forward_pre_hook(_on_input(visit, "heads", number)).remove)
            stack.callback(layer.mlp.down.register_forward_pre_hook(_on_input(visit, "neurons", number)).remove)
        for number, norm in enumerate(channel_norms(subset)):
            stack.callback(norm.register_forward_hook(_on_output(visit, "channels", number)).remove)
        yield


def channel_norms(subset: LayerSubset) -> list[Norm]:
    """Return the norms in the order of ``channels``."""
    return [norm for layer in subset.modules for norm in (layer.attention_norm, layer.mlp_norm)] + [subset.model.decoder.norm]


def channel_readers(subset: LayerSubset) -> list[Linear]:
    """Return the matrix that reads each of ``channel_norms``."""
    return [linear for layer in subset.modules for linear in (layer.attention.qkv, layer.mlp.up)] + [subset.model.decoder.lm_head]


def _on_input(visit: Visit, kind: Kind, number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, inputs: visit(kind, number, inputs[0])


def _on_output(visit: Visit, kind: Kind, number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda module, inputs, output: visit(kind, number, output)
