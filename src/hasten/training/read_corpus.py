"""``read_corpus``: the training text as token ids, from a file or continued by a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.text.tokenizer import TextTokenizer
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Corpus
from hasten.training.documents import encode_documents, generate_documents
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder


def read_corpus(
    model: str,
    data: Path,
    tokenizer: TextTokenizer,
    *,
    options: TrainOptions,
    resume: ResumeFolder,
    callback: TrainingCallback,
    should_stop: Callable[[], bool],
    reader: TextTokenizer | None = None,
) -> Corpus | None:
    """Return the corpus of a file of texts.

    With ``self_distill`` it is what ``model`` writes after passages of the texts. ``tokenizer`` is the model's. ``reader`` is that
    of the model in training, if it has another vocabulary. None if ``should_stop`` returned True. Raises ``InvalidOption``.
    """
    callback.on_log(f"reading {data}")
    final = reader or tokenizer
    if options.self_distill is None:
        documents = encode_documents(data, final)
        return Corpus.split(documents, options.seq_len, options.validation_fraction, final.eos_token_id)
    callback.on_log(f"generating {options.self_distill} documents of {options.seq_len} tokens to train on")
    engine: dict[str, Any] = {} if options.threads is None else {"threads": options.threads}
    count, seq_len, seed = options.self_distill, options.seq_len, options.seed
    prompts = encode_documents(data, tokenizer)
    generated = generate_documents(model, prompts, count, seq_len, seed, resume, should_stop, **engine)
    if generated is None:
        return None
    if reader is not None:
        texts = (tokenizer.decode(document, skip_special_tokens=True) for document in generated)
        generated = [reader.encode(text, add_special_tokens=False) for text in texts]
    return Corpus.split(generated, seq_len, options.validation_fraction, final.eos_token_id)
