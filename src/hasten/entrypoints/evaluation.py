"""``evaluate``: compare a model as it will run with an exact reference, on a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.hub import resolve
from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import InvalidOption
from hasten.entrypoints.llm import LLM
from hasten.entrypoints.progress import scoring_bar
from hasten.models.load import read_spec
from hasten.models.spec import DecoderSpec
from hasten.quality.compare import CHUNK_SIZE, compare
from hasten.quality.documents import HELD_OUT, read_texts, read_token_ids
from hasten.quality.quality import Quality
from hasten.quality.window import NUM_TOKENS, WINDOW, TokenText, Window, windows

_SHARE_A_TOKENIZER = "Compare models that share a tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``reference`` and ``candidate`` are the results of ``LLM.describe``."""

    quality: Quality
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    text: str  # its source
    window: int  # most tokens that are read with one context

    @property
    def size_ratio(self) -> float:
        """Bytes of the candidate's weights in its files over those of the reference."""
        ratio: float = self.candidate["file_bytes"] / self.reference["file_bytes"]
        return ratio

    def as_dict(self) -> dict[str, Any]:
        return {
            "quality": self.quality.as_dict(),
            "size_ratio": self.size_ratio,
            "reference": dict(self.reference),
            "candidate": dict(self.candidate),
            "text": self.text,
            "window": self.window,
        }


def evaluate(
    model: str,
    options: Mapping[str, Any],
    *,
    against: str | None = None,
    text: Path | None = None,
    token_ids: Path | None = None,
    window: int | None = None,
    num_tokens: int = NUM_TOKENS,
) -> Evaluation:
    """Compare ``model`` with ``options`` to ``against`` in float32 on PyTorch.

    ``options`` are fields of ``EngineOptions``. ``against`` None is ``model`` itself; it may be quantised, too. The text is a file
    (``read_texts``), a file of token ids (``read_token_ids``), or the held-out text that ships with hasten. Raises
    ``HastenError``; text, window and vocabulary sizes are checked before a model is loaded.
    """
    if text is not None and token_ids is not None:
        raise InvalidOption("text and token_ids exclude each other", got=f"{text} and {token_ids}", remedy="Give one of them")
    texts = None if token_ids is not None else read_texts(text or HELD_OUT)
    quiet = not options.get("show_progress")
    specs = [_spec(resolve(model, options.get("revision"), quiet=quiet))]
    specs += [_spec(resolve(against, quiet=quiet))] if against is not None else []
    _check_vocabulary_sizes(specs)
    length = _window(window, specs, options)
    # One window keeps the KV caches small, and scoring needs no drafter, whose costs would be measured.
    one_window = {"max_model_len": length, "max_num_seqs": 1, "speculative_method": "off"}
    with LLM(model, **{**one_window, **options}) as candidate:
        length = min(length, candidate.describe()["max_model_len"])
        if token_ids is None:
            encoded = _encode(candidate, texts or [])
        else:
            encoded = [TokenText(ids) for ids in read_token_ids(token_ids, specs[0].vocab_size)]
        cut = windows(encoded, length, num_tokens)
        with LLM(against or model, **one_window, **reference_options(options, same_model=against is None)) as reference:
            _check_same_tokens(reference, candidate, texts, encoded)
            return Evaluation(
                quality=_compare(reference, candidate, cut, visible=not quiet),
                reference=reference.describe(),
                candidate=candidate.describe(),
                text=str(token_ids or text or "the held-out text that ships with hasten"),
                window=length,
            )


def reference_options(options: Mapping[str, Any], *, same_model: bool) -> dict[str, Any]:
    """Return the options that load a reference exactly; ``options`` are the candidate's."""
    shared = ("threads", "show_progress", *(("revision",) if same_model else ()))
    # PyTorch multiplies dequantised weights, and quantises no activations.
    return {name: options[name] for name in shared if name in options} | {"dtype": "float32", "backend": "torch"}


def _compare(reference: LLM, candidate: LLM, all_windows: list[Window], *, visible: bool) -> Quality:
    scorers = reference.engine.logits_scorer(), candidate.engine.logits_scorer()
    chunk_size = min(CHUNK_SIZE, *(scorer.max_num_batched_tokens for scorer in scorers))
    with scoring_bar(sum(window.num_tokens for window in all_windows), visible=visible) as progress:
        return compare(*scorers, all_windows, chunk_size=chunk_size, progress=progress)


def _spec(folder: Path) -> DecoderSpec:
    return read_spec(Checkpoint.open(folder))


def _check_vocabulary_sizes(specs: Sequence[DecoderSpec]) -> None:
    sizes = [spec.vocab_size for spec in specs]
    if len(set(sizes)) > 1:
        got = f"{sizes[0]} and {sizes[1]} tokens"
        raise InvalidOption("the two models have different vocabularies", got=got, remedy=_SHARE_A_TOKENIZER)


def _window(window: int | None, specs: Sequence[DecoderSpec], options: Mapping[str, Any]) -> int:
    """Return ``window``, or by default ``WINDOW``, within the contexts. Raises ``InvalidOption``."""
    contexts = [spec.max_positions for spec in specs]
    contexts += [options["max_model_len"]] if isinstance(options.get("max_model_len"), int) else []
    if window is not None and not 1 <= window <= min(contexts):
        raise InvalidOption("the window is out of range", got=f"{window} tokens", allowed=f"1 to {min(contexts)}, the context")
    return min(window or WINDOW, *contexts)


def _encode(llm: LLM, texts: list[str]) -> list[TokenText]:
    if llm.tokenizer is None:
        raise InvalidOption(
            f"{llm.describe()['model']} has no tokenizer, so a text cannot be scored",
            remedy="Give a file of token ids with --token-ids",
        )
    spans = [llm.tokenizer.encode_with_offsets(text) for text in texts]
    return [TokenText(tuple(ids), tuple(ends)) for ids, ends in spans]


def _check_same_tokens(reference: LLM, candidate: LLM, texts: list[str] | None, encoded: list[TokenText]) -> None:
    """Raise ``InvalidOption`` if a token id means different tokens to the two models."""
    same_tokenizer = texts is None or reference.describe()["folder"] == candidate.describe()["folder"]
    if not same_tokenizer and _encode(reference, texts or []) != encoded:
        raise InvalidOption("the two models read the text as different tokens", remedy=_SHARE_A_TOKENIZER)
