"""Early exit token by token and layer by layer, with the modules of transformers.

The reference is slow, written from the papers alone, and shares no code with the engine. It computes a request alone, with keys and
values in lists. A token that exits after layer e adds keys and values of its last hidden state to the lists of layers from e on
(Schuster et al., 2022, §3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


@dataclass(frozen=True, slots=True)
class TrainedExit:
    """After one layer: the tuned lens x + A x + b, and the classifier's vector and offset."""

    matrix_EE: Tensor
    bias_E: Tensor
    vector_E: Tensor
    offset: float


@dataclass(slots=True)
class ReferenceOutput:
    token_ids: list[int] = field(default_factory=list)
    exit_layers: list[int] = field(default_factory=list)
    smallest_margin: float = math.inf  # of all decisions: confidence to threshold, top logit to the second one

    def record_margin(self, margin: float) -> None:
        self.smallest_margin = min(self.smallest_margin, margin)


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    threshold: float = 0.0
    decay: float | None = 4.0
    layer: int | None = None
    token_layers: tuple[int, ...] = ()


class ReferenceExits:
    def __init__(self, model: PreTrainedModel, exits: dict[int, TrainedExit]) -> None:
        self.model, self.exits = model, exits
        self.num_layers = model.config.num_hidden_layers
        self.reset()

    def reset(self) -> None:
        """Drop all keys and values. Per layer, one tensor per position [K, D]."""
        self.keys: list[list[Tensor]] = [[] for _ in range(self.num_layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(self.num_layers)]

    @torch.inference_mode()
    def generate(self, prompt: list[int], num_tokens: int, rule: Rule) -> ReferenceOutput:
        """Return the greedy output of a request with ``max_tokens=num_tokens``."""
        self.reset()
        output = ReferenceOutput()
        if rule.name == "entropy":
            exit_layer = self.prompt_exit_layer(prompt, rule, output)
            generated = self.generate(prompt, num_tokens, Rule("fixed", layer=exit_layer))
            generated.record_margin(output.smallest_margin)
            return generated
        tokens = list(prompt)
        for position in range(len(prompt) + num_tokens - 1):
            num_written = position + 1 - len(prompt)  # output tokens before the one that these logits give
            exit_layer, logits_V = self.compute_token(tokens[position], position, num_written, num_tokens, rule, output)
            if num_written >= 0:
                top = logits_V.topk(2).values
                output.record_margin(float(top[0] - top[1]))
                tokens.append(int(logits_V.argmax()))
                output.exit_layers.append(exit_layer)
        output.token_ids = tokens[len(prompt) :]
        return output

    def prompt_exit_layer(self, prompt: list[int], rule: Rule, output: ReferenceOutput) -> int:
        """Return the first exit at which the prompt's last token is confident enough, or the number of layers."""
        hidden = [self.model.model.embed_tokens(torch.tensor([token]))[0] for token in prompt]
        for layer in range(self.num_layers):
            hidden = [self._layer(layer, hidden_E, position) for position, hidden_E in enumerate(hidden)]
            if layer + 1 in self.exits:
                probs = self._logits(layer + 1, hidden[-1]).softmax(-1)
                confidence = 1 + float((probs * probs.log()).sum()) / math.log(len(probs))
                output.record_margin(abs(confidence - rule.threshold))
                if confidence > rule.threshold:
                    return layer + 1
        return self.num_layers

    def compute_token(
        self, token: int, position: int, num_written: int, num_tokens: int, rule: Rule, output: ReferenceOutput
    ) -> tuple[int, Tensor]:
        """Return the exit layer of a token and its logits."""
        hidden_E = self.model.model.embed_tokens(torch.tensor([token]))[0]
        for layer in range(self.num_layers):
            previous_E, hidden_E = hidden_E, self._layer(layer, hidden_E, position)
            exit_layer = layer + 1
            if exit_layer < self.num_layers and self._exits_here(
                exit_layer, token, previous_E, hidden_E, num_written, num_tokens, rule, output
            ):
                for skipped in range(exit_layer, self.num_layers):
                    self._store_kv(skipped, hidden_E, position)
                return exit_layer, self._logits(exit_layer, hidden_E)
        return self.num_layers, self._logits(self.num_layers, hidden_E)

    def _exits_here(
        self,
        exit_layer: int,
        token: int,
        previous_E: Tensor,
        hidden_E: Tensor,
        num_written: int,
        num_tokens: int,
        rule: Rule,
        output: ReferenceOutput,
    ) -> bool:
        if rule.name == "fixed":
            return exit_layer == rule.layer
        if num_written < 1 or rule.name == "none":
            return False
        if rule.name == "token_table":
            return exit_layer == rule.token_layers[token]
        if exit_layer not in self.exits:
            return False
        if rule.name == "saturation":
            if exit_layer == 1:
                return False
            confidence = float(torch.cosine_similarity(previous_E, hidden_E, dim=0).clamp(0, 1))
        elif rule.name == "classifier":
            trained = self.exits[exit_layer]
            direction_E = hidden_E / (hidden_E.square().mean() + 1e-6).sqrt()
            confidence = float(torch.sigmoid(direction_E @ trained.vector_E + trained.offset))
        else:
            assert rule.name == "softmax"
            top = self._logits(exit_layer, hidden_E).softmax(-1).topk(2).values
            confidence = float(top[0] - top[1])
        threshold = rule.threshold
        if rule.decay is not None:
            threshold = min(1.0, 0.9 * threshold + 0.1 * math.exp(-rule.decay * num_written / num_tokens))
        output.record_margin(abs(confidence - threshold))
        return confidence > threshold

    def _logits(self, exit_layer: int, hidden_E: Tensor) -> Tensor:
        if exit_layer in self.exits:
            trained = self.exits[exit_layer]
            hidden_E = hidden_E + trained.matrix_EE @ hidden_E + trained.bias_E
        return self.model.lm_head(self.model.model.norm(hidden_E))

    def _store_kv(self, layer: int, hidden_E: Tensor, position: int) -> Tensor:
        """Append keys and values to the layer's lists; return the rotated queries. [H, D]"""
        module: Any = self.model.model.layers[layer].self_attn
        x = self.model.model.layers[layer].input_layernorm(hidden_E)
        dim = module.head_dim
        q, k, v = (p(x).view(-1, dim) for p in (module.q_proj, module.k_proj, module.v_proj))
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        cos, sin = self.model.model.rotary_emb(hidden_E[None, None], torch.tensor([[position]]))
        q, k = apply_rotary_pos_emb(q[None, :, None], k[None, :, None], cos, sin)
        if len(self.keys[layer]) == position:
            self.keys[layer].append(k[0, :, 0])
            self.values[layer].append(v)
        return q[0, :, 0]

    def _layer(self, layer: int, hidden_E: Tensor, position: int) -> Tensor:
        module: Any = self.model.model.layers[layer]
        q_HD = self._store_kv(layer, hidden_E, position)
        layer_types = getattr(self.model.config, "layer_types", None)
        window = self.model.config.sliding_window if layer_types and layer_types[layer] == "sliding_attention" else None
        first = 0 if window is None else max(0, position - window + 1)
        keys_SKD = torch.stack(self.keys[layer][first : position + 1])
        values_SKD = torch.stack(self.values[layer][first : position + 1])
        group_size = len(q_HD) // keys_SKD.shape[1]  # query heads per KV head
        heads = []
        for head, q_D in enumerate(q_HD):
            probs_S = (keys_SKD[:, head // group_size] @ q_D * module.self_attn.head_dim**-0.5).softmax(0)
            heads.append(probs_S @ values_SKD[:, head // group_size])
        hidden_E = hidden_E + module.self_attn.o_proj(torch.cat(heads))
        return hidden_E + module.mlp(module.post_attention_layernorm(hidden_E))
