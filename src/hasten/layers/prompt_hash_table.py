"""``PromptHashTable``: texts that look alike leave the model at the same layer, known beforehand (HashEE, Sun et al., 2022).

Shape suffixes: T tokens · E hidden size · P planes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PromptHashTable:
    """A text's bucket is made of the signs of its mean token embedding on every plane (Charikar, 2002): plane p is bit p."""

    planes_PE: Tensor  # float32, normals of planes through the origin
    layers: Tensor  # [2 ** P] int32, how many layers compute a text of each bucket

    def __post_init__(self) -> None:
        assert self.layers.shape == (1 << len(self.planes_PE),), (self.planes_PE.shape, self.layers.shape)

    def bucket(self, embedded_TE: Tensor) -> int:
        """Of a prompt's token embeddings, as the model looks them up."""
        side_P = (self.planes_PE * embedded_TE.float().mean(0)).sum(-1) > 0
        return sum(1 << place for place, above in enumerate(side_P.tolist()) if above)

    def layer(self, embedded_TE: Tensor) -> int:
        """How many layers compute the text; the number of the model's layers: all of them."""
        return int(self.layers[self.bucket(embedded_TE)])
