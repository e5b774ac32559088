"""Text to train draft models, heads and exits on: ``python own_words.py MODEL --docs DIR --out text.jsonl``.

Half of it is pieces of the training documents (or fewer, with ``--pieces``), the rest is what the model makes of their beginnings:
what is guessed is what the model says, but after prompts that it did not write. One of two texts of its own is greedy, the other
sampled as its generation config says.
"""

import argparse
import json
from pathlib import Path

import corpus
import numpy as np

from hasten import LLM

PIECE = 256  # tokens
BEGINNINGS = 32, 192  # tokens of the shortest and of the longest prompt


def pieces(llm: LLM, documents: list[corpus.Document], count: int, seed: int) -> list[list[int]]:
    """Windows of the documents, every token as likely as any other to be in one."""
    draw = np.random.default_rng(seed)
    ids = [llm.tokenizer.encode(document.text, add_special_tokens=False) for document in documents]
    ids = [text for text in ids if len(text) > PIECE]
    lengths = np.array([len(text) - PIECE for text in ids])
    chosen = draw.choice(len(ids), size=count, p=lengths / lengths.sum())
    return [ids[i][at : at + PIECE] for i, at in zip(chosen, (draw.random(count) * lengths[chosen]).astype(int), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=6000, help="by the model")
    parser.add_argument("--pieces", type=int, help="of documents; as many as there are texts by the model, unless told")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    llm = LLM(options.model, quantization="int8", max_num_seqs=64, max_model_len=PIECE)
    num_pieces = options.texts if options.pieces is None else options.pieces
    found = pieces(llm, corpus.load(options.docs)[0], options.texts + num_pieces, options.seed)
    begun, whole = found[: options.texts], found[options.texts :]
    lengths = np.random.default_rng(options.seed).integers(*BEGINNINGS, size=options.texts, endpoint=True).tolist()
    prompts = [ids[:length] for ids, length in zip(begun, lengths, strict=True)]
    sampled = llm.default_sampling_params().replace(ignore_eos=True)
    temperatures = [sampled.temperature if i % 2 else 0.0 for i in range(options.texts)]
    params = [
        sampled.replace(seed=i, temperature=temperature, max_tokens=PIECE - length)
        for i, (temperature, length) in enumerate(zip(temperatures, lengths, strict=True))
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    written = [ids + list(output.outputs[0].token_ids) for ids, output in zip(prompts, outputs, strict=True)]
    with options.out.open("w", encoding="utf-8") as lines:
        for ids in written + whole:
            lines.write(json.dumps({"text": llm.tokenizer.decode(ids, skip_special_tokens=False)}) + "\n")


if __name__ == "__main__":
    main()
