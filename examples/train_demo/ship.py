"""Copy trained models into the package: ``python ship.py --model DIR --draft DIR --docs DIR``.

Writes weights, tokenizers, reports and the held-out text to ``src/hasten/demo``. Prints the figures of its ``README.md``.
"""

import argparse
import json
import shutil
from pathlib import Path

import corpus

PACKAGE = Path(__file__).parents[2] / "src" / "hasten" / "demo"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "training.json")
# The models write best at a temperature below 1.
GENERATION = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 3}


def install(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    (target / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


def figures(name: str, folder: Path) -> str:
    """Return a row of the table in ``README.md``: bits per byte and next-token accuracy per kind of text."""
    quality = json.loads((folder / "training.json").read_text())["quality"]
    bits = [f"{quality[kind]['bits_per_byte']:.3f}" for kind in ("all", "code", "docs")]
    accuracies = [f"{quality[kind]['next_token_accuracy']:.1%}" for kind in ("all", "code", "docs")]
    return f"| {name} | " + " | ".join([*bits, *accuracies]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    options = parser.parse_args()
    held_out = corpus.load(options.docs)[1]
    install(options.model, PACKAGE / "model")
    install(options.draft, PACKAGE / "draft")
    with (PACKAGE / "heldout.jsonl").open("w", encoding="utf-8") as file:
        for document in held_out:
            file.write(json.dumps({"name": document.name, "kind": document.kind, "text": document.text}) + "\n")
    print("| | all | code | documentation | all | code | documentation |")
    print(figures("demo", PACKAGE / "model"))
    print(figures("demo-draft", PACKAGE / "draft"))


if __name__ == "__main__":
    main()
