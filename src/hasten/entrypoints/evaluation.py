"""``evaluate``: compare a model as it will run with an exact reference, on a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.progress import scoring_bar
from hasten.models.family import find_family
from hasten.quality.compare import CHUNK_SIZE, compare
from hasten.quality.documents import HELD_OUT, read_texts, read_token_ids
from hasten.quality.quality import Quality
from hasten.quality.window import NUM_TOKENS, WINDOW, TokenText, Window, windows

_SHARED = ("threads", "show_progress")  # options of the candidate that the reference takes over
_EXACT = {"dtype": "float32", "backend": "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``reference`` and ``candidate`` are the results of ``LLM.describe``."""

    quality: Quality
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    text: str  # its source
    window: int  # most tokens that are read with one context

    def as_dict(self) -> dict[str, Any]:
        return {
            "quality": self.quality.as_dict(),
            "reference": dict(self.reference),
            "candidate": dict(self.candidate),
            "text": self.text,
            "window": self.window,
        }


def evaluate(
    model: str,
    options: Mapping[str, Any],
    *,
    reference: str | None = None,
    text: Path | None = None,
    token_ids: Path | None = None,
    window: int | None = None,
    num_tokens: int = NUM_TOKENS,
) -> Evaluation:
    """Compare ``model`` with ``options`` to ``reference`` in float32 on PyTorch.

    ``options`` are fields of ``EngineOptions``. ``reference`` None is ``model`` itself. The text is a file (``read_texts``), a file
    of token ids (``read_token_ids``), or the held-out text that ships with hasten. Raises ``HastenError``; text and window are
    checked before a model is loaded.
    """
    if text is not None and token_ids is not None:
        raise InvalidOption("text and token_ids exclude each other", got=f"{text} and {token_ids}", remedy="Give one of them")
    texts = None if token_ids is not None else read_texts(text or HELD_OUT)
    length = _window(window, model, reference, options)
    one_window = {"max_model_len": length, "max_num_seqs": 1}  # keeps the KV caches small
    candidate_llm = LLM(model, **{**one_window, **options})
    length = min(length, candidate_llm.describe()["max_model_len"])
    if token_ids is None:
        encoded = _encode(candidate_llm, texts or [])
    else:
        encoded = [TokenText(ids) for ids in read_token_ids(token_ids, candidate_llm.describe()["vocab_size"])]
    shared = {name: options[name] for name in _SHARED if name in options}
    if reference is None and "revision" in options:
        shared["revision"] = options["revision"]
    reference_llm = LLM(reference or model, **one_window, **shared, **_EXACT)
    _check_same_tokens(reference_llm, candidate_llm, texts, encoded)
    quality = _compare(
        reference_llm, candidate_llm, windows(encoded, length, num_tokens), visible=bool(options.get("show_progress"))
    )
    return Evaluation(
        quality=quality,
        reference=reference_llm.describe(),
        candidate=candidate_llm.describe(),
        text=str(token_ids or text or "the held-out text that ships with hasten"),
        window=length,
    )


def _compare(reference: LLM, candidate: LLM, all_windows: list[Window], *, visible: bool) -> Quality:
    scorers = reference.engine.logits_scorer(), candidate.engine.logits_scorer()
    chunk_size = min(CHUNK_SIZE, *(scorer.max_num_batched_tokens for scorer in scorers))
    with scoring_bar(sum(window.num_tokens for window in all_windows), visible=visible) as progress:
        return compare(*scorers, all_windows, chunk_size=chunk_size, progress=progress)


def _window(window: int | None, model: str, reference: str | None, options: Mapping[str, Any]) -> int:
    """Return ``window``, or by default ``WINDOW``, within the contexts. Raises ``InvalidOption``."""
    quiet = not options.get("show_progress")
    contexts = [_max_positions(resolve(model, options.get("revision"), quiet=quiet))]
    contexts += [_max_positions(resolve(reference, quiet=quiet))] if reference is not None else []
    contexts += [options["max_model_len"]] if isinstance(options.get("max_model_len"), int) else []
    if window is not None and not 1 <= window <= min(contexts):
        raise InvalidOption("the window is out of range", got=f"{window} tokens", allowed=f"1 to {min(contexts)}, the context")
    return min(window or WINDOW, *contexts)


def _max_positions(folder: Path) -> int:
    config = Checkpoint.open(folder).config
    return find_family(config).spec(config).max_positions


def _encode(llm: LLM, texts: list[str]) -> list[TokenText]:
    if llm.tokenizer is None:
        raise InvalidOption(
            "this checkpoint has no tokenizer, so a text cannot be scored", remedy="Give a file of token ids with --token-ids"
        )
    spans = [llm.tokenizer.encode_with_offsets(text) for text in texts]
    return [TokenText(tuple(ids), tuple(ends)) for ids, ends in spans]


def _check_same_tokens(reference: LLM, candidate: LLM, texts: list[str] | None, encoded: list[TokenText]) -> None:
    """Raise ``InvalidOption`` if a token id means different tokens to the two models."""
    sizes = [llm.describe()["vocab_size"] for llm in (reference, candidate)]
    remedy = "Compare models that share a tokenizer"
    if sizes[0] != sizes[1]:
        raise InvalidOption("the two models have different vocabularies", got=f"{sizes[0]} and {sizes[1]} tokens", remedy=remedy)
    same_tokenizer = texts is None or reference.describe()["folder"] == candidate.describe()["folder"]
    if not same_tokenizer and (reference.tokenizer is None or _encode(reference, texts or []) != encoded):
        raise InvalidOption("the two models read the text as different tokens", remedy=remedy)
