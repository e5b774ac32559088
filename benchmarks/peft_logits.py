"""Log-probabilities after soft prompts, by hasten and by the peft library, in both directions.

It needs ``pip install peft``: ``python benchmarks/peft_logits.py demo --out benchmarks/results/peft_logits.json``

    written by peft     peft saves a soft prompt with random embeddings; hasten loads it
    written by hasten   hasten saves one; peft loads it

Both read the held-out text of the demo model from its start, in float32. A figure is the largest difference of a token's
log-probability.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from hasten import LLM
from hasten.bench.provenance import provenance
from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt
from hasten.checkpoints.hub import resolve
from hasten.text.tokenizer import TextTokenizer

VIRTUAL_TOKENS = 20
TOKENS = 64  # of a text; the first half is the prompt
TEXTS = 8


def base_alone(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def texts(folder: Path, vocab_size: int) -> list[list[int]]:
    """Return the first tokens of some texts."""
    tokenizer = TextTokenizer.load(folder, vocab_size)
    assert tokenizer is not None, "this model has no tokenizer"
    lines = (resolve("demo").parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
    return [tokenizer.encode(json.loads(line)["text"][:4096])[:TOKENS] for line in lines]


def by_peft(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of the second half of a text."""
    half = len(ids) // 2
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64)).logits[0]
    logprobs = logits[-len(ids) :].log_softmax(-1)
    return torch.stack([logprobs[at - 1, ids[at]] for at in range(half, len(ids))])


def largest_difference(llm: LLM, model: Any, folder: Path, all_ids: list[list[int]]) -> float:
    soft_prompt, found = llm.load_soft_prompt(folder), 0.0
    for ids in all_ids:
        half = len(ids) // 2
        (score,) = llm.score({"prompt_token_ids": ids[:half]}, [{"token_ids": ids[half:]}], soft_prompt=soft_prompt)
        found = max(found, float((by_peft(model, ids) - torch.tensor(score.logprobs)).abs().max()))
    return found


def measure(name: str, out: Path) -> dict[str, float]:
    folder = resolve(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ids = texts(folder, config["vocab_size"])
    torch.manual_seed(0)
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS, prompt_tuning_init="RANDOM")
    with LLM(name, dtype="float32", max_model_len=256, speculative_method="off") as llm:
        tuned = peft.get_peft_model(base_alone(folder), settings)
        tuned.save_pretrained(out / "peft")
        rows = 0.1 * torch.randn(VIRTUAL_TOKENS, config["hidden_size"])
        heads = config["num_attention_heads"]
        trained_for = TrainedFor(base_model=str(folder), num_layers=config["num_hidden_layers"], num_attention_heads=heads)
        write_soft_prompt(out / "hasten", rows, trained_for)
        loaded = peft.PeftModel.from_pretrained(base_alone(folder), out / "hasten")
        return {
            "written by peft": largest_difference(llm, tuned, out / "peft", ids),
            "written by hasten": largest_difference(llm, loaded, out / "hasten", ids),
            "without a soft prompt in peft": largest_difference(llm, base_alone(folder), out / "hasten", ids),  # the check can fail
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, Path(folder))
        print(name, ", ".join(f"{key}: {value:.2g}" for key, value in rows[name].items()))
    result = {**provenance("peft_logits", sys.argv), "peft": peft.__version__, "largest_difference": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
