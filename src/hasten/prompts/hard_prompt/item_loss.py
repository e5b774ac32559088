"""``ItemLoss``: how unlikely the references of items are after a hard prompt, with its gradient.

Shape suffixes: C hard prompts · L tokens of one · E hidden size · I items · P pairs of a prompt and an item · T tokens of all
sequences · R tokens of references · V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core.errors import HastenError
from hasten.layers.attention import DenseContext
from hasten.prompts.hard_prompt.prompt_layout import Row
from hasten.training.target_model import TargetModel

MAX_TOKENS = 8192  # that pass through the model at once, unless one item has more
MAX_LOGITS = 1 << 24  # that are in memory at once, unless one item has more
Pair = tuple[int, int]  # index of the hard prompt, index of the item


class ItemLoss:
    """Computes the mean cross entropy per token of an item's reference, in nats.

    Of several references, the most likely one counts, as in the metric ``log_likelihood``, whose negative this is.

    ``num_tokens``: those that passed through the model so far. With a gradient a token counts twice, because the pass back through
    frozen weights costs as much again. Methods raise ``HastenError`` for a loss that is not finite.
    """

    def __init__(self, target: TargetModel, head_ids: Sequence[int], items: Sequence[Sequence[Row]]) -> None:
        """``items``: the rows of each one, one row per reference."""
        self._target, self._head_ids, self._items = target, list(head_ids), items
        self.num_tokens = 0

    @torch.no_grad()
    def losses(self, prompts_CLE: Tensor, items: Sequence[int]) -> Tensor:
        """Return the loss of each item after each hard prompt, [C, I]."""
        pairs = list(itertools.product(range(len(prompts_CLE)), items))
        parts = [self._pair_losses(prompts_CLE, group) for group in self._groups(pairs, prompts_CLE.shape[1])]
        return _finite(torch.cat(parts)).view(len(prompts_CLE), len(items))

    def gradient(self, prompt_LE: Tensor, items: Sequence[int]) -> tuple[float, Tensor]:
        """Return the mean loss of the items after one hard prompt, and its gradient by the embeddings [L, E]."""
        leaf_LE = prompt_LE.detach().clone().requires_grad_()
        total = 0.0
        for group in self._groups([(0, item) for item in items], len(prompt_LE)):
            loss = _finite(self._pair_losses(leaf_LE[None], group)).sum() / len(items)
            torch.autograd.backward(loss)
            total += float(loss.detach())
            self.num_tokens += self._num_tokens(group, len(prompt_LE))
        assert leaf_LE.grad is not None
        return total, leaf_LE.grad

    def _length(self, row: Row, prompt_length: int) -> int:
        return len(self._head_ids) + prompt_length + len(row.tail_ids) + len(row.reference_ids)

    def _num_tokens(self, pairs: Sequence[Pair], prompt_length: int) -> int:
        return sum(self._length(row, prompt_length) for _, item in pairs for row in self._items[item])

    def _groups(self, pairs: Sequence[Pair], prompt_length: int) -> Iterator[list[Pair]]:
        """Yield pairs in order, as many at a time as the limits allow."""
        vocab_size = self._target.spec.vocab_size
        group: list[Pair] = []
        tokens = logits = 0
        for pair in pairs:
            more_tokens = self._num_tokens([pair], prompt_length)
            more_logits = vocab_size * sum(len(row.reference_ids) for row in self._items[pair[1]])
            if group and (tokens + more_tokens > MAX_TOKENS or logits + more_logits > MAX_LOGITS):
                yield group
                group, tokens, logits = [], 0, 0
            group.append(pair)
            tokens, logits = tokens + more_tokens, logits + more_logits
        if group:
            yield group

    def _pair_losses(self, prompts_CLE: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return the loss of each pair [P], with its graph. All sequences pass through the model at once."""
        decoder, length, num_head = self._target.decoder, prompts_CLE.shape[1], len(self._head_ids)
        rows = [(prompt, row) for prompt, item in pairs for row in self._items[item]]
        lengths = [self._length(row, length) for _, row in rows]
        ids_T = _ids([i for _, row in rows for i in (*self._head_ids, *[0] * length, *row.tail_ids, *row.reference_ids)])
        starts = [0, *itertools.accumulate(lengths)]
        places = _ids([start + num_head + offset for start in starts[:-1] for offset in range(length)])
        prompts_TE = prompts_CLE[_ids([prompt for prompt, _ in rows])].flatten(0, 1)
        embedded_TE = decoder.embed(ids_T).index_put((places,), prompts_TE)
        context = DenseContext(self._target.ops, decoder.rotary, lengths)
        hidden_TE = decoder.run(embedded_TE, context.positions_T, context)
        self.num_tokens += len(ids_T)
        references = [range(end - len(row.reference_ids), end) for (_, row), end in zip(rows, starts[1:], strict=True)]
        positions_R = _ids([position for positions in references for position in positions])
        # The position before a token predicts it.
        losses_R = F.cross_entropy(decoder.head(hidden_TE[positions_R - 1]), ids_T[positions_R], reduction="none")
        means = [part.mean() for part in torch.split(losses_R, [len(positions) for positions in references])]
        by_item = torch.split(torch.stack(means), [len(self._items[item]) for _, item in pairs])
        return torch.stack([part.min() for part in by_item])


def _finite(losses_P: Tensor) -> Tensor:
    if not bool(losses_P.isfinite().all()):
        raise HastenError("the loss of a hard prompt is not finite", remedy="Check the model: its logits are not finite")
    return losses_P


def _ids(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")
