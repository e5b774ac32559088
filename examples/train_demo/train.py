"""Train the demo model or its draft model: ``python train.py --docs DIR --out demo``.

Muon trains the matrices (Jordan et al., 2024: momentum, orthogonalised by a Newton-Schulz iteration), AdamW the embedding and the
norms. Sequences grow from 512 to 4,096 tokens, and the learning rate falls linearly to zero. Everything is float32, so a laptop
without bf16 arithmetic gives the same quality. On a GPU the script runs without changes.
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
# (end as a share of the run, tokens per sequence). Short sequences are cheap; the last ones train the far positions.
SEQ_LENS = ((0.70, 512), (0.90, 1024), (1.00, CONTEXT))

EXIT_LAYERS = (2, 3, 4, 5, 6, 7)  # trained with --early-exit
EXIT_WEIGHT = 1.0  # of their loss

DOCS_REPEAT = 2  # the documentation, the smaller part of the text, is read twice per epoch


class Progress:
    """The finished share of the run: by tokens, or by time if ``minutes`` are given and this is more."""

    def __init__(self, tokens: int, minutes: float | None) -> None:
        self.total_tokens, self.minutes, self.tokens, self.started = tokens, minutes, 0, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def share(self) -> float:
        by_time = self.seconds() / 60 / self.minutes if self.minutes else 0.0
        return max(self.tokens / self.total_tokens, by_time)


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised. Matrices of one shape are updated in one batch."""

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
    """Return UVᵀ of each matrix of ``x`` [matrix, row, column], by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def encode(documents: list[corpus.Document], tokenizer: bpe.PreTrainedTokenizerFast, seed: int) -> np.ndarray:
    """Return one stream of token ids: all documents in a seeded order, each after an END token."""
    documents = documents + [d for d in documents if d.kind == "docs"] * (DOCS_REPEAT - 1)
    order = np.random.default_rng(seed).permutation(len(documents))
    encoded = tokenizer._tokenizer.encode_batch([documents[i].text for i in order])
    return np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded])


def batches(stream: np.ndarray, tokens_per_step: int, progress: Progress, seed: int) -> Iterator[torch.Tensor]:
    """Yield ids [sequence, token + 1] until the run ends. Each epoch has another order and other offsets."""
    rng = np.random.default_rng(seed)
    starts, seq_len = np.array([], dtype=np.int64), 0
    while (share := progress.share()) < 1:
        last_seq_len, seq_len = seq_len, next(seq_len for end, seq_len in SEQ_LENS if share < end)
        count = tokens_per_step // seq_len
        if seq_len != last_seq_len or len(starts) < count:
            starts = rng.permutation(np.arange(rng.integers(seq_len), len(stream) - seq_len - 1, seq_len))
        batch, starts = starts[:count], starts[count:]
        yield torch.from_numpy(np.stack([stream[start : start + seq_len + 1] for start in batch]).astype(np.int64))
        progress.tokens += count * seq_len


def build_model(shape: str) -> LlamaForCausalLM:
    hidden, feed_forward, layers, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=bpe.VOCAB_SIZE,
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


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids[:, 1:].flatten())


def early_exit_loss(model: LlamaForCausalLM, ids: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the next-token loss plus a distillation loss of earlier layers.

    The method follows LayerSkip (Elhoushi et al., 2024). ``order`` is a permutation of the tokens. Each token exits after one of
    ``EXIT_LAYERS``. The model's own norm and lm_head read its hidden state there, and the label is the last layer's distribution.
    That costs one more lm_head product per token, whatever the number of exits.
    """
    hidden = model.model.embed_tokens(ids[:, :-1])
    positions = torch.arange(hidden.shape[1], device=ids.device)[None]
    rotary = model.model.rotary_emb(hidden, positions)
    exit_hidden = []
    parts = order.chunk(len(EXIT_LAYERS))
    for num_layers, layer in enumerate(model.model.layers, 1):
        hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        if num_layers in EXIT_LAYERS:
            exit_hidden.append(hidden.flatten(0, 1)[parts[EXIT_LAYERS.index(num_layers)]])
    logits = model.lm_head(model.model.norm(hidden)).flatten(0, 1)
    exit_logits = model.lm_head(model.model.norm(torch.cat(exit_hidden)))
    labels = logits.detach().softmax(-1)[order]
    return F.cross_entropy(logits, ids[:, 1:].flatten()) + EXIT_WEIGHT * F.cross_entropy(exit_logits, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--init-from", type=Path, help="folder of the initial model and its tokenizer")
    parser.add_argument("--early-exit", action="store_true", help="also train the earlier layers to predict the next token")
    parser.add_argument("--tokenizer", type=Path, help="folder of an existing tokenizer; the draft model needs the demo model's")
    parser.add_argument("--tokens", type=int, default=16_000_000)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--minutes", type=float, help="end the run after about this time")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = corpus.load(options.docs)
    tokenizer_folder = options.init_from or options.tokenizer
    tokenizer = bpe.load(tokenizer_folder) if tokenizer_folder else bpe.train((d.text for d in train), CONTEXT)
    stream = encode(train, tokenizer, options.seed)
    if options.init_from:
        model = LlamaForCausalLM.from_pretrained(options.init_from, dtype=torch.float32)
    else:
        model = build_model(options.shape)
    model = model.to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} training tokens", flush=True)

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=options.lr),
        torch.optim.AdamW(others, lr=options.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peak = [[g["lr"] for g in o.param_groups] for o in optimizers]
    objective = early_exit_loss if options.early_exit else next_token_loss
    loss_function = torch.compile(objective, dynamic=False) if options.compile else objective
    log, recent = [], []
    progress = Progress(options.tokens, options.minutes)
    for step, ids in enumerate(batches(stream, options.tokens_per_step, progress, options.seed), 1):
        ids = ids.to(device)
        extra = (torch.randperm(ids[:, 1:].numel()).to(device),) if options.early_exit else ()
        loss = loss_function(model, ids, *extra)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        scale = min(1.0, step / 40) * min(1.0, (1 - progress.share()) / 0.6)
        for optimizer, rates in zip(optimizers, peak, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * max(scale, 0.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if step % 50 == 0:
            mean, seconds, tokens = sum(recent) / len(recent), progress.seconds(), progress.tokens
            log.append({"step": step, "tokens": tokens, "loss": round(mean, 4), "seconds": round(seconds)})
            print(f"step {step:5d}  {tokens / 1e6:6.2f} M tokens  loss {mean:.4f}  {tokens / seconds:,.0f} tokens/s", flush=True)
            recent.clear()
    model.eval()
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    quality = bits_per_byte(model.float(), tokenizer, held_out)
    earlier_report = options.init_from / "training.json" if options.init_from else None
    before = json.loads(earlier_report.read_text()) if earlier_report and earlier_report.exists() else {}
    report = {
        "tokens": before.get("tokens", 0) + progress.tokens,
        "minutes": round(before.get("minutes", 0.0) + progress.seconds() / 60, 1),
        "quality": quality,
        "log": before.get("log", []) + log,
    }
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(quality, indent=1))


if __name__ == "__main__":
    main()
