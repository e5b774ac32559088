"""Train the demo model, or its draft model: ``python train.py --docs DIR --out demo``, from nothing or ``--from`` a model.

Matrices are trained by Muon (Jordan et al., 2024: momentum, orthogonalised by a Newton-Schulz iteration), the embedding and the
norms by AdamW. The window grows from 512 tokens to the full 4,096, the learning rate falls linearly to zero. Everything is float32,
so the recipe gives the same quality on a laptop without bf16 arithmetic; on a GPU it runs as it is.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import numpy as np
import tokenizer as bpe
import torch
from evaluate import bits_per_byte
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 4096
SHAPES = {
    # hidden size, feed-forward size, layers, query heads, key/value heads
    "demo": (256, 768, 8, 4, 2),
    "draft": (128, 384, 2, 2, 2),
}
# (share of the run, window): short windows are cheap and teach most; the last ones teach the far positions.
WINDOWS = ((0.70, 512), (0.90, 1024), (1.00, CONTEXT))

# Where tokens leave early while the model learns to be left early (``--leave-early``), and how much that counts.
EXITS = (2, 3, 4, 5, 6, 7)
EXIT_WEIGHT = 1.0

DOCS_REPEAT = 2  # the documentation is the smaller half: it is read twice an epoch


class Progress:
    """The share of the run that is done: by tokens or, where minutes are given, by the clock if that is further on."""

    def __init__(self, tokens: int, minutes: float | None) -> None:
        self.tokens, self.minutes, self.done, self.started = tokens, minutes, 0, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def share(self) -> float:
        by_clock = self.seconds() / 60 / self.minutes if self.minutes else 0.0
        return max(self.done / self.tokens, by_clock)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by its nearest semi-orthogonal matrix. Same-shaped matrices are updated in one batch."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        shapes = sorted({tuple(p.shape) for p in parameters})
        groups = [{"params": [p for p in parameters if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            updates = []
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(average, group["momentum"]))
            stacked = orthogonalise(torch.stack(updates))
            rows, columns = stacked.shape[1:]
            for p, update in zip(group["params"], stacked, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The quintic Newton-Schulz iteration towards UVᵀ of each matrix of ``x`` [matrix, row, column]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def encode(documents: list[corpus.Document], tokenizer: bpe.PreTrainedTokenizerFast, seed: int) -> np.ndarray:
    """All documents in a seeded order, each after its END token, as one stream of ids."""
    documents = documents + [d for d in documents if d.kind == "docs"] * (DOCS_REPEAT - 1)
    order = np.random.default_rng(seed).permutation(len(documents))
    encoded = tokenizer._tokenizer.encode_batch([documents[i].text for i in order])
    return np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded])


def batches(stream: np.ndarray, tokens_per_step: int, progress: Progress, seed: int) -> Iterator[torch.Tensor]:
    """Rows of ids [row, token + 1] until the run is done, each epoch's windows in a new order and at a new offset."""
    generator = np.random.default_rng(seed)
    starts, width = np.array([], dtype=np.int64), 0
    while (share := progress.share()) < 1:
        window = next(window for limit, window in WINDOWS if share < limit)
        rows = tokens_per_step // window
        if window != width or len(starts) < rows:
            width = window
            starts = generator.permutation(np.arange(generator.integers(window), len(stream) - window - 1, window))
        take, starts = starts[:rows], starts[rows:]
        yield torch.from_numpy(np.stack([stream[s : s + window + 1] for s in take]).astype(np.int64))
        progress.done += rows * window


def build(shape: str) -> LlamaForCausalLM:
    hidden, feed_forward, layers, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=bpe.VOCABULARY,
        max_position_embeddings=CONTEXT,
        head_dim=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    model = LlamaForCausalLM(config)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02 if "embed" in name else 1 / math.sqrt(p.shape[1]))
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.data.mul_(0.1)
    return model


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, 1:].flatten())


def loss_with_exits(model: LlamaForCausalLM, ids: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The loss of the last layer, and of the layers before it as teachers' pupils (after Elhoushi et al., 2024, LayerSkip).

    ``order`` is a permutation of the tokens. Each token leaves at one of the layers of ``EXITS``, and what it says there, through
    the model's own norm and vocabulary, is drawn towards what the last layer says. One more vocabulary product a token, whatever
    the number of exits.
    """
    hidden = model.model.embed_tokens(ids[:, :-1])
    positions = torch.arange(hidden.shape[1], device=ids.device)[None]
    rotary = model.model.rotary_emb(hidden, positions)
    left = []
    parts = order.chunk(len(EXITS))
    for depth, layer in enumerate(model.model.layers, 1):
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        if depth in EXITS:
            left.append(hidden.flatten(0, 1)[parts[EXITS.index(depth)]])
    logits = model.lm_head(model.model.norm(hidden)).flatten(0, 1)
    said = model.lm_head(model.model.norm(torch.cat(left)))
    whole = logits.detach().softmax(-1)[order]
    return F.cross_entropy(logits, ids[:, 1:].flatten()) + EXIT_WEIGHT * F.cross_entropy(said, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--from", type=Path, dest="start", help="go on from this folder's model and tokenizer")
    parser.add_argument("--leave-early", action="store_true", help="also teach the layers before the last to speak")
    parser.add_argument("--tokenizer", type=Path, help="reuse this folder's tokenizer (the draft model must)")
    parser.add_argument("--tokens", type=int, default=16_000_000)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--minutes", type=float, help="scale the run to end after about this long")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = corpus.load(options.docs)
    known = options.start or options.tokenizer
    tokenizer = bpe.load(known) if known else bpe.train((d.text for d in train), CONTEXT)
    stream = encode(train, tokenizer, options.seed)
    model = LlamaForCausalLM.from_pretrained(options.start, dtype=torch.float32) if options.start else build(options.shape)
    model = model.to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} training tokens", flush=True)

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=options.lr),
        torch.optim.AdamW(rest, lr=options.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peak = [[g["lr"] for g in o.param_groups] for o in optimizers]
    objective = loss_with_exits if options.leave_early else loss_of
    loss_function = torch.compile(objective, dynamic=False) if options.compile else objective
    log, recent = [], []
    progress = Progress(options.tokens, options.minutes)
    for step, ids in enumerate(batches(stream, options.tokens_per_step, progress, options.seed), 1):
        ids = ids.to(device)
        extra = (torch.randperm(ids[:, 1:].numel()).to(device),) if options.leave_early else ()
        loss = loss_function(model, ids, *extra)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        scale = min(1.0, step / 40) * min(1.0, (1 - progress.share()) / 0.6)
        for optimizer, rates in zip(optimizers, peak, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * max(scale, 0.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if step % 50 == 0:
            mean, seconds, tokens = sum(recent) / len(recent), progress.seconds(), progress.done
            log.append({"step": step, "tokens": tokens, "loss": round(mean, 4), "seconds": round(seconds)})
            print(f"step {step:5d}  {tokens / 1e6:6.2f} M tokens  loss {mean:.4f}  {tokens / seconds:,.0f} tokens/s", flush=True)
            recent.clear()
    model.eval()
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    quality = bits_per_byte(model.float(), tokenizer, held_out)
    told = options.start / "training.json" if options.start else None
    before = json.loads(told.read_text()) if told and told.exists() else {}
    report = {
        "tokens": before.get("tokens", 0) + progress.done,
        "minutes": round(before.get("minutes", 0.0) + progress.seconds() / 60, 1),
        "quality": quality,
        "log": before.get("log", []) + log,
    }
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(quality, indent=1))


if __name__ == "__main__":
    main()
