"""``KlEvaluator``: KL(original || quantised) on held-out text, for any assignment of bits to layers.

One pass of the original model keeps the input of each layer. An assignment runs from its first quantised layer on, so a late layer
alone costs little. One decoder layer is in memory at a time.

Shape suffixes: W windows · S tokens per window · T tokens · R rows of logits · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.compress.quantize.mixed.kl_estimate import KlEstimate
from hasten.compress.quantize.mixed.validation_text import MIN_CLUSTERS, Cluster
from hasten.core.errors import InvalidOption
from hasten.layers.decoder_layer import DecoderLayer
from hasten.models.layer_stream import LayerStream
from hasten.quality.divergence import divergence

UNQUANTIZED = 16  # the bits of a layer that stays as it is
ROWS = 256  # positions whose logits are in memory at a time: of a vocabulary of 152k they take 156 MB per side

# Returns the layer of an index with weights of some bits, dequantised to float32. It is called for every pass through the layer.
QuantizedLayer = Callable[[int, int], DecoderLayer]


class KlEvaluator:
    """Its memory is that of the inputs: 4 bytes * layers * tokens * hidden size."""

    def __init__(self, stream: LayerStream, clusters: Sequence[Cluster], quantized_layer: QuantizedLayer) -> None:
        """Run the original model on the text. Raises ``InvalidOption`` for too few clusters."""
        if len(clusters) < MIN_CLUSTERS:
            raise InvalidOption(
                "the validation text is too short to bound the KL divergence",
                got=f"{len(clusters)} parts for one of its halves",
                allowed=f"at least {MIN_CLUSTERS} texts or windows in either half",
                remedy="Give a longer text",
            )
        self._stream, self._quantized_layer = stream, quantized_layer
        self._cluster_lengths = [sum(window.num_tokens for window in cluster) for cluster in clusters]
        text = [window for cluster in clusters for window in cluster]
        lengths = [window.num_tokens for window in text]
        # The attention is causal: what fills up a window on the right changes nothing before it.
        ids_WS = torch.zeros(len(text), max(lengths), dtype=torch.int64, device="cpu")
        for row_S, window in zip(ids_WS, text, strict=True):
            row_S[: window.num_tokens] = torch.tensor(window.token_ids[:-1], dtype=torch.int64, device="cpu")
        lengths_W = torch.tensor(lengths, dtype=torch.int64, device="cpu")
        self._is_token_WS = torch.arange(max(lengths), dtype=torch.int64, device="cpu") < lengths_W[:, None]
        self._targets_T = torch.cat([torch.tensor(w.token_ids[1:], dtype=torch.int64, device="cpu") for w in text])
        self._inputs = [stream.embed(ids_WS)]  # of each layer, [W, S, E]; the last is the output of the last layer
        for index in range(self.num_layers):
            self._inputs.append(self._run(stream.layer(index), index, self._inputs[-1]))

    @property
    def num_layers(self) -> int:
        return len(self._stream.spec.layers)

    def evaluate(self, bits: Sequence[int]) -> KlEstimate:
        """Return the KL of the model whose layers have ``bits``. Raises what ``cluster_kls`` raises."""
        return KlEstimate.of_clusters(self.cluster_kls(bits))

    def cluster_kls(self, bits: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the KL at each token of each cluster, for the model whose layers have ``bits``.

        Raises ``CheckpointError`` for logits that are not finite.
        """
        assert len(bits) == self.num_layers
        first = next((index for index, number in enumerate(bits) if number != UNQUANTIZED), self.num_layers)
        hidden_WSE = self._inputs[first]
        for index in range(first, self.num_layers):
            quantized = bits[index] != UNQUANTIZED
            layer = self._quantized_layer(index, bits[index]) if quantized else self._stream.layer(index)
            hidden_WSE = self._run(layer, index, hidden_WSE)
        return self._compare(hidden_WSE)

    def _run(self, layer: DecoderLayer, index: int, hidden_WSE: Tensor) -> Tensor:
        outputs_WSE = torch.empty_like(hidden_WSE)
        for rows, part_WSE in self._stream.run(layer, index, hidden_WSE):
            outputs_WSE[rows] = part_WSE
        return outputs_WSE

    def _compare(self, hidden_WSE: Tensor) -> tuple[Tensor, ...]:
        """Return the KL of each cluster of the logits after ``hidden_WSE``, the output of the last layer."""
        sides = zip(
            torch.split(self._inputs[-1][self._is_token_WS], ROWS),
            torch.split(hidden_WSE[self._is_token_WS], ROWS),
            torch.split(self._targets_T, ROWS),
            strict=True,
        )
        kl_T = torch.cat(
            [
                divergence(self._stream.logits(reference_RE), self._stream.logits(candidate_RE), targets_R).kl_R
                for reference_RE, candidate_RE, targets_R in sides
            ]
        )
        return torch.split(kl_T, self._cluster_lengths)
