"""Text for ``hasten train``: ``python self_distill.py MODEL --docs DIR --out text.jsonl``.

Half of the texts are passages of the training documents, or fewer with ``--passages``. The model generates the others from the
beginnings of passages, every second one greedily and the rest as its generation config says. Draft tokens have to match what the
model generates, but after prompts that it did not generate.
"""

import argparse
import json
from pathlib import Path

import corpus
import numpy as np

from hasten import LLM

SEQ_LEN = 256  # tokens of a text
PROMPT_LENGTHS = 32, 192  # shortest and longest prompt


def sample_passages(llm: LLM, documents: list[corpus.Document], count: int, seed: int) -> list[list[int]]:
    """Return passages of ``SEQ_LEN`` tokens, drawn uniformly from all passages of the documents."""
    rng = np.random.default_rng(seed)
    encoded = [llm.tokenizer.encode(document.text, add_special_tokens=False) for document in documents]
    encoded = [ids for ids in encoded if len(ids) > SEQ_LEN]
    num_starts = np.array([len(ids) - SEQ_LEN for ids in encoded])
    chosen = rng.choice(len(encoded), size=count, p=num_starts / num_starts.sum())
    starts = (rng.random(count) * num_starts[chosen]).astype(int)
    return [encoded[i][start : start + SEQ_LEN] for i, start in zip(chosen, starts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--docs", type=Path, required=True, help="folder of the CPython documentation's .rst sources")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=6000, help="texts that the model generates")
    parser.add_argument("--passages", type=int, help="passages of documents; by default as many as --texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    llm = LLM(options.model, quantization="int8", max_num_seqs=64, max_model_len=SEQ_LEN)
    num_passages = options.texts if options.passages is None else options.passages
    passages = sample_passages(llm, corpus.load(options.docs)[0], options.texts + num_passages, options.seed)
    lengths = np.random.default_rng(options.seed).integers(*PROMPT_LENGTHS, size=options.texts, endpoint=True).tolist()
    prompts = [ids[:length] for ids, length in zip(passages[: options.texts], lengths, strict=True)]
    defaults = llm.default_sampling_params().replace(ignore_eos=True)
    temperatures = [defaults.temperature if i % 2 else 0.0 for i in range(options.texts)]
    params = [
        defaults.replace(seed=i, temperature=temperature, max_tokens=SEQ_LEN - length)
        for i, (temperature, length) in enumerate(zip(temperatures, lengths, strict=True))
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    generated = [ids + list(output.outputs[0].token_ids) for ids, output in zip(prompts, outputs, strict=True)]
    with options.out.open("w", encoding="utf-8") as file:
        for ids in generated + passages[options.texts :]:
            file.write(json.dumps({"text": llm.tokenizer.decode(ids, skip_special_tokens=False)}) + "\n")


if __name__ == "__main__":
    main()
