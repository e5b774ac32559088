"""Leaving early, token by token and layer by layer, with the modules of transformers: slow, and written from the papers alone.

It shares no code with the engine: a request is computed alone, its keys and values are lists, and a token that leaves after layer e
puts the keys and values of its last state into the lists of all layers from e on (Schuster et al., 2022, §3).
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
    """After one layer: the translator x + A x + b, and the classifier's vector and offset."""

    matrix_EE: Tensor
    bias_E: Tensor
    vector_E: Tensor
    offset: float


@dataclass(slots=True)
class SlowAnswer:
    token_ids: list[int] = field(default_factory=list)
    exit_layers: list[int] = field(default_factory=list)
    closest: float = math.inf  # how near a decision was to another one: certainty to threshold, best logit to the next


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    threshold: float = 0.0
    decay: float | None = 4.0
    layer: int | None = None
    token_layers: tuple[int, ...] = ()


class SlowExits:
    def __init__(self, model: PreTrainedModel, exits: dict[int, TrainedExit]) -> None:
        self.model, self.exits = model, exits
        self.num_layers = model.config.num_hidden_layers

    @torch.inference_mode()
    def answer(self, prompt: list[int], num_tokens: int, rule: Rule) -> SlowAnswer:
        """Greedy, ``num_tokens`` of a request whose ``max_tokens`` is that."""
        self.keys: list[list[Tensor]] = [[] for _ in range(self.num_layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(self.num_layers)]
        found = SlowAnswer()
        if rule.name == "entropy":
            depth = self._prompt_depth(prompt, rule, found)
            return self.answer(prompt, num_tokens, Rule("fixed", layer=depth)) if depth else found
        tokens = list(prompt)
        for position in range(len(prompt) + num_tokens - 1):
            written = position + 1 - len(prompt)  # tokens of the answer before the one that this state gives
            depth, logits_V = self._token(tokens[position], position, written, num_tokens, rule, found)
            if written >= 0:
                best = logits_V.topk(2).values
                found.closest = min(found.closest, float(best[0] - best[1]))
                tokens.append(int(logits_V.argmax()))
                found.exit_layers.append(depth)
        found.token_ids = tokens[len(prompt) :]
        return found

    def _prompt_depth(self, prompt: list[int], rule: Rule, found: SlowAnswer) -> int:
        """The first exit at which the prompt's last token is sure, or all layers."""
        hidden = [self.model.model.embed_tokens(torch.tensor([token]))[0] for token in prompt]
        for layer in range(self.num_layers):
            hidden = [self._layer(layer, state, position) for position, state in enumerate(hidden)]
            if layer + 1 in self.exits:
                share = self._logits(layer + 1, hidden[-1]).softmax(-1)
                certainty = 1 + float((share * share.log()).sum()) / math.log(len(share))
                found.closest = min(found.closest, abs(certainty - rule.threshold))
                if certainty > rule.threshold:
                    return layer + 1
        return self.num_layers

    def _token(self, token: int, position: int, written: int, num_tokens: int, rule: Rule, found: SlowAnswer) -> tuple[int, Tensor]:
        state = self.model.model.embed_tokens(torch.tensor([token]))[0]
        for layer in range(self.num_layers):
            before, state = state, self._layer(layer, state, position)
            depth = layer + 1
            if depth < self.num_layers and self._leaves(depth, token, before, state, written, num_tokens, rule, found):
                for skipped in range(depth, self.num_layers):
                    self._keep(skipped, state, position)
                return depth, self._logits(depth, state)
        return self.num_layers, self._logits(self.num_layers, state)

    def _leaves(
        self, depth: int, token: int, before: Tensor, state: Tensor, written: int, num_tokens: int, rule: Rule, found: SlowAnswer
    ) -> bool:
        if rule.name == "fixed":
            return depth == rule.layer
        if written < 1 or rule.name == "none":
            return False
        if rule.name == "token_table":
            return depth == rule.token_layers[token]
        if depth not in self.exits:
            return False
        if rule.name == "saturation":
            if depth == 1:
                return False
            certainty = float(torch.cosine_similarity(before, state, dim=0).clamp(0, 1))
        elif rule.name == "classifier":
            exit_ = self.exits[depth]
            direction = state / (state.square().mean() + 1e-6).sqrt()
            certainty = float(torch.sigmoid(direction @ exit_.vector_E + exit_.offset))
        else:
            assert rule.name == "softmax"
            best = self._logits(depth, state).softmax(-1).topk(2).values
            certainty = float(best[0] - best[1])
        threshold = rule.threshold
        if rule.decay is not None:
            threshold = min(1.0, 0.9 * threshold + 0.1 * math.exp(-rule.decay * written / num_tokens))
        found.closest = min(found.closest, abs(certainty - threshold))
        return certainty > threshold

    def _logits(self, depth: int, state: Tensor) -> Tensor:
        if depth in self.exits:
            exit_ = self.exits[depth]
            state = state + exit_.matrix_EE @ state + exit_.bias_E
        return self.model.lm_head(self.model.model.norm(state))

    def _keep(self, layer: int, state: Tensor, position: int) -> Tensor:
        """Keys and values of the state go to the layer's lists; returns the rotated queries. [H, D]"""
        module: Any = self.model.model.layers[layer].self_attn
        x = self.model.model.layers[layer].input_layernorm(state)
        dim = module.head_dim
        q, k, v = (p(x).view(-1, dim) for p in (module.q_proj, module.k_proj, module.v_proj))
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        cos, sin = self.model.model.rotary_emb(state[None, None], torch.tensor([[position]]))
        q, k = apply_rotary_pos_emb(q[None, :, None], k[None, :, None], cos, sin)
        if len(self.keys[layer]) == position:
            self.keys[layer].append(k[0, :, 0])
            self.values[layer].append(v)
        return q[0, :, 0]

    def _layer(self, layer: int, state: Tensor, position: int) -> Tensor:
        module: Any = self.model.model.layers[layer]
        q_HD = self._keep(layer, state, position)
        kinds = getattr(self.model.config, "layer_types", None)
        window = self.model.config.sliding_window if kinds and kinds[layer] == "sliding_attention" else None
        first = 0 if window is None else max(0, position - window + 1)
        keys_SKD = torch.stack(self.keys[layer][first : position + 1])
        values_SKD = torch.stack(self.values[layer][first : position + 1])
        each = len(q_HD) // keys_SKD.shape[1]
        heads = []
        for head, q_D in enumerate(q_HD):
            shares = (keys_SKD[:, head // each] @ q_D * module.self_attn.head_dim**-0.5).softmax(0)
            heads.append(shares @ values_SKD[:, head // each])
        state = state + module.self_attn.o_proj(torch.cat(heads))
        return state + module.mlp(module.post_attention_layernorm(state))
