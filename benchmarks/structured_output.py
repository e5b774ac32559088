"""What structured output costs in a batch, and what forced tokens save in a single answer.

``python benchmarks/structured_output.py --out benchmarks/results/structured_output.json``

The model has the Qwen3-0.6B shape with random weights, in int8 or bfloat16. Its tokenizer is a byte-level BPE of 151,000 tokens,
trained on the Python files of the environment.

masks: 32 requests decode at once, none of them or 16 of them guided by a JSON schema; seconds per step, in turn.
forced: one answer of a JSON schema, beside as many tokens without one.
"""

import argparse
import json
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engines import shapes
from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.core.structured_outputs import StructuredOutputs

BATCH, GUIDED, TOKENS = 32, 16, 48
VOCABULARY = 151_000
TRAINING_BYTES = 60 << 20
# Strings that a random model fills with random characters; it does not end before ``TOKENS``.
ENDLESS = {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}, "minItems": 1000}
ANSWER = {
    "type": "object",
    "properties": {
        "customer_identifier": {"type": "integer", "minimum": 0, "maximum": 9999},
        "shipping_address_is_verified": {"type": "boolean"},
        "preferred_contact_method": {"enum": ["email", "telephone", "letter"]},
        "number_of_open_invoices": {"type": "integer", "minimum": 0, "maximum": 99},
        "subscription_renewal_period": {"enum": ["monthly", "quarterly", "yearly"]},
    },
    "required": [
        "customer_identifier",
        "shipping_address_is_verified",
        "preferred_contact_method",
        "number_of_open_invoices",
        "subscription_renewal_period",
    ],
    "additionalProperties": False,
}


def with_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """Return a folder with the checkpoint's weights and a trained tokenizer."""
    file = folder / "tokenizer.json"
    if file.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((checkpoint / name).resolve())
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="ignore"))
        size += len(texts[-1])
        if size > TRAINING_BYTES:
            break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(file))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": special[0]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    return folder


def masks(checkpoint: Path, quantization: str | None, repeats: int) -> dict[str, Any]:
    prompts = [{"prompt_token_ids": [(7919 * i + 31 * j) % 5000 + 300 for i in range(64)]} for j in range(BATCH)]
    form = StructuredOutputs(json=ENDLESS)
    with LLM(str(checkpoint), **_engine(quantization), speculative_method="off") as llm:

        def seconds_per_step(num_guided: int) -> float:
            free = SamplingParams(temperature=0.8, seed=1, max_tokens=TOKENS, ignore_eos=True)
            guided = SamplingParams(temperature=0.8, seed=1, max_tokens=TOKENS, structured_outputs=form)
            params = [guided if j < num_guided else free for j in range(BATCH)]
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert all(output.error is None for output in outputs)
            assert all(len(output.outputs[0].token_ids) == TOKENS for output in outputs)
            first = max(output.metrics.first_token or 0 for output in outputs)
            last = max(output.metrics.finished or 0 for output in outputs)
            return (last - first) / (TOKENS - 1)

        for num_guided in (0, GUIDED):  # compile, warm up
            seconds_per_step(num_guided)
        pairs = [(seconds_per_step(0), seconds_per_step(GUIDED)) for _ in range(repeats)]
    ratios = [guided / free for free, guided in pairs]
    return {
        "free_ms": 1e3 * statistics.median(free for free, _ in pairs),
        "guided_ms": 1e3 * statistics.median(guided for _, guided in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def forced(checkpoint: Path, quantization: str | None, repeats: int) -> dict[str, Any]:
    prompt = {"prompt_token_ids": [(7919 * i) % 5000 + 300 for i in range(64)]}
    form = StructuredOutputs(json=ANSWER, disable_any_whitespace=True)
    speedups, tokens, accepted = [], 0, 0
    with LLM(str(checkpoint), **_engine(quantization)) as llm:
        for i in range(repeats + 1):
            params = SamplingParams(temperature=0.8, seed=i, max_tokens=400, structured_outputs=form)
            begin = time.perf_counter()
            guided = llm.generate(prompt, params, use_tqdm=False, cache_salt=f"a{i}")[0]
            middle = time.perf_counter()
            tokens, accepted = len(guided.outputs[0].token_ids), guided.metrics.num_accepted_tokens
            assert guided.outputs[0].is_complete
            json.loads(guided.outputs[0].text)
            free = SamplingParams(temperature=0.8, seed=i, max_tokens=tokens, ignore_eos=True)
            llm.generate(prompt, free, use_tqdm=False, cache_salt=f"b{i}")
            end = time.perf_counter()
            if i:
                speedups.append((end - middle) / (middle - begin))
    return {"speedup": statistics.median(speedups), "speedups": speedups, "tokens": tokens, "accepted": accepted}


def _engine(quantization: str | None) -> dict[str, Any]:
    return {"dtype": "bfloat16", "quantization": quantization, "max_model_len": 1024, "kv_cache_memory": "1GiB"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of the checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    checkpoint = with_tokenizer(shapes.checkpoint("qwen3-0.6b", options.work, seed=0), options.work / "structured-output")
    quantization = None if options.quantization == "none" else options.quantization
    found = {
        "quantization": quantization,
        "masks": masks(checkpoint, quantization, options.repeats),
        "forced": forced(checkpoint, quantization, options.repeats),
        "goals": {"masks": 1.1, "forced": 1.3},
        **provenance("structured output", sys.argv),
    }
    print(json.dumps({name: found[name] for name in ("quantization", "masks", "forced")}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
