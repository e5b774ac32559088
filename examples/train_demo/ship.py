"""Put trained models into the package: ``python ship.py --model DIR --draft DIR --docs DIR``.

Writes weights, tokenizers, the held-out text and the model card under ``src/hasten/demo``.
"""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import corpus
from safetensors import safe_open

PACKAGE = Path(__file__).parents[2] / "src" / "hasten" / "demo"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# A model of this size writes best a little below its own temperature.
GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 3}
CARD = """\
# The demo model

A decoder of the Llama architecture with {parameters:,} parameters ({layers} layers, hidden size {hidden}, {heads} query and
{kv_heads} key/value heads of 64, context 4,096) and its draft model of {draft_parameters:,}, both over one byte-level BPE
tokenizer of 8,192 tokens. They exist so that every feature of hasten can be tried and tested without a download. They complete
Python code and English documentation in the style of CPython; they do not answer questions, and nothing they write should be
relied on. The tokenizer reserves chat, think and tool tokens and has a chat template; no conversation was trained on.

**Data.** The source of the CPython {python} standard library ({code_mb:.1f} MB of code, tests included) and the sources of its
documentation ({docs_mb:.1f} MB, read twice per epoch), under the PSF licence. {held_count} files ({held_kb} KB), chosen by the hash
of their names, are held out; they are in `heldout.jsonl` for quality measurements and have never been trained on.

**Licence.** Weights and tokenizers: Apache-2.0, as the rest of this package. `heldout.jsonl`: PSF-2.0, © Python Software
Foundation.

**Recipe.** `examples/train_demo/train.py`: Muon for matrices, AdamW for the rest, float32, windows of 512, then 1,024, then 4,096
tokens; then all of that once more while the layers before the last learn to say what the last one says (after LayerSkip, Elhoushi
et al., 2024); weights rounded to bf16 at the end. The demo model read {tokens:.1f} million tokens in {minutes:.0f} minutes on two
CPU cores, the draft model {draft_tokens:.1f} million in {draft_minutes:.0f}.

**Figures**, on the held-out files, each read from its start in chunks of 4,096 tokens (`examples/train_demo/evaluate.py`):

| | bits per byte | code | documentation | next-token accuracy | code | documentation |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""


def row(name: str, quality: dict[str, dict[str, float]]) -> str:
    cells = [quality[kind]["bits_per_byte"] for kind in ("all", "code", "docs")]
    hits = [f"{quality[kind]['next_token_accuracy']:.1%}" for kind in ("all", "code", "docs")]
    return f"| {name} | " + " | ".join([*(f"{cell:.3f}" for cell in cells), *hits]) + " |"


def install(source: Path, target: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copy one model; returns its config and its training report."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    (target / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    shutil.copyfile(source / "training.json", target / "training.json")
    return json.loads((source / "config.json").read_text()), json.loads((source / "training.json").read_text())


def parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    train, held_out = corpus.load(options.docs)
    config, report = install(options.model, PACKAGE / "model")
    _, draft_report = install(options.draft, PACKAGE / "draft")
    with (PACKAGE / "heldout.jsonl").open("w", encoding="utf-8") as lines:
        for document in held_out:
            lines.write(json.dumps({"name": document.name, "kind": document.kind, "text": document.text}) + "\n")
    size = {kind: sum(len(d.text.encode()) for d in train if d.kind == kind) / 1e6 for kind in ("code", "docs")}
    card = CARD.format(
        parameters=parameters(PACKAGE / "model"),
        draft_parameters=parameters(PACKAGE / "draft"),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        python="3.11",
        code_mb=size["code"],
        docs_mb=size["docs"],
        held_count=len(held_out),
        held_kb=sum(len(d.text.encode()) for d in held_out) // 1000,
        tokens=report["tokens"] / 1e6,
        minutes=report["minutes"],
        draft_tokens=draft_report["tokens"] / 1e6,
        draft_minutes=draft_report["minutes"],
        rows="\n".join([row("demo", report["quality"]), row("demo-draft", draft_report["quality"])]),
    )
    (PACKAGE / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
