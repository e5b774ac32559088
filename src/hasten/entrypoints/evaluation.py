"""``evaluate``: load a model twice, as it is meant to be and as it is meant to run, and compare the two on a text."""

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
from hasten.quality.compare import PIECE, compare
from hasten.quality.documents import HELD_OUT, read_texts, read_token_ids
from hasten.quality.quality import Quality
from hasten.quality.window import NUM_TOKENS, WINDOW, TokenText, Window, windows

# What the reference shares with the candidate; all else of it is fixed.
_SHARED = ("threads", "show_progress")
_EXACT = {"dtype": "float32", "backend": "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``reference`` and ``candidate`` are what ``LLM.describe`` says of them."""

    quality: Quality
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    text: str  # where it came from
    window: int  # tokens read at most without a break

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
    """``model`` with ``options`` (fields of ``EngineOptions``) against ``reference``, by default itself, in float32 on PyTorch.

    The text is a file (``read_texts``), a file of token ids (``read_token_ids``), or the one that ships with hasten. Raises
    ``HastenError``: nothing is loaded before the file has been read and the window checked.
    """
    if text is not None and token_ids is not None:
        raise InvalidOption("a text and token ids were given, and one of them can be scored", got=f"{text} and {token_ids}")
    texts = None if token_ids is not None else read_texts(text or HELD_OUT)
    length = _window(window, model, reference, options)
    one = {"max_model_len": length, "max_num_seqs": 1}  # one window at a time: the pools stay small
    candidate = LLM(model, **{**one, **options})
    length = min(length, candidate.describe()["max_model_len"])
    encoded = _encode(candidate, texts) if texts is not None else _given(candidate, token_ids)
    cut = windows(encoded, length, num_tokens)
    shared = {name: options[name] for name in _SHARED if name in options}
    if reference is None and "revision" in options:
        shared["revision"] = options["revision"]
    base = LLM(reference or model, **one, **shared, **_EXACT)
    _check_alike(base, candidate, texts, encoded)
    quality = _compare(base, candidate, cut, visible=bool(options.get("show_progress")))
    source = str(token_ids or text or "the held-out text that ships with hasten")
    return Evaluation(quality=quality, reference=base.describe(), candidate=candidate.describe(), text=source, window=length)


def _compare(reference: LLM, candidate: LLM, cut: list[Window], *, visible: bool) -> Quality:
    ours, theirs = reference.engine.scorer(), candidate.engine.scorer()
    piece = min(PIECE, ours.max_step, theirs.max_step)
    with scoring_bar(sum(window.num_tokens for window in cut), visible=visible) as progress:
        return compare(ours, theirs, cut, piece=piece, progress=progress)


def _window(asked: int | None, model: str, reference: str | None, options: Mapping[str, Any]) -> int:
    """``asked`` or ``WINDOW``, within the contexts. Raises ``InvalidOption`` if more is asked than they have."""
    quiet = not options.get("show_progress")
    rooms = [_max_positions(resolve(model, options.get("revision"), quiet=quiet))]
    rooms += [_max_positions(resolve(reference, quiet=quiet))] if reference is not None else []
    rooms += [options["max_model_len"]] if isinstance(options.get("max_model_len"), int) else []
    if asked is not None and not 1 <= asked <= min(rooms):
        raise InvalidOption("the window is out of range", got=f"{asked} tokens", allowed=f"1 to {min(rooms)}, the context")
    return min(asked or WINDOW, *rooms)


def _max_positions(folder: Path) -> int:
    config = Checkpoint.open(folder).config
    return find_family(config).spec(config).max_positions


def _encode(llm: LLM, texts: list[str]) -> list[TokenText]:
    if llm.tokenizer is None:
        raise InvalidOption(
            "this checkpoint has no tokenizer, so a text cannot be scored", remedy="Give a file of token ids with --token-ids"
        )
    spans = [llm.tokenizer.spans(text) for text in texts]
    return [TokenText(tuple(ids), tuple(ends)) for ids, ends in spans]


def _given(llm: LLM, file: Path | None) -> list[TokenText]:
    assert file is not None
    return [TokenText(ids) for ids in read_token_ids(file, llm.describe()["vocab_size"])]


def _check_alike(reference: LLM, candidate: LLM, texts: list[str] | None, encoded: list[TokenText]) -> None:
    """Raises ``InvalidOption`` if the two do not speak of the same tokens: their logits could not be compared."""
    sizes = [llm.describe()["vocab_size"] for llm in (reference, candidate)]
    remedy = "Compare models that share a tokenizer"
    if sizes[0] != sizes[1]:
        raise InvalidOption("the two models have different vocabularies", got=f"{sizes[0]} and {sizes[1]} tokens", remedy=remedy)
    same = texts is None or reference.describe()["folder"] == candidate.describe()["folder"]
    if not same and (reference.tokenizer is None or _encode(reference, texts or []) != encoded):
        raise InvalidOption("the two models read the text as different tokens", remedy=remedy)
