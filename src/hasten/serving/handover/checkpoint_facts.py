"""What vLLM has to be told about a checkpoint, because it would choose otherwise."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hasten.checkpoints.gguf.gguf_path import is_gguf
from hasten.checkpoints.hub import SHIPPED, cached_models
from hasten.checkpoints.json_values import read_json
from hasten.core.errors import InvalidOption
from hasten.text.answers.choose_parsers import choose_parsers
from hasten.text.chat_template import ChatTemplate
from hasten.text.tokenizer_config import TokenizerConfig


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """``model``: as vLLM is given it. ``is_read``: whether its files are on this machine."""

    model: str
    is_read: bool
    dtype: str | None  # of config.json
    tool_call_parser: str | None
    reasoning_parser: str | None


def read_facts(name: str, tool_call_parser: str | None, reasoning_parser: str | None) -> CheckpointFacts:
    """Return the facts of a folder, a shipped model or a hub id, without a download.

    The parsers are those given, or the ones that fit the chat template.

    Raises ``InvalidOption`` for a GGUF file and for unknown parsers, and ``CheckpointError`` for a broken folder.
    """
    folder, model = _find(name)
    template = dtype = None
    if folder is not None:
        template, dtype = _chat_template(folder), _dtype(folder)
    parsers = choose_parsers(template, tool_call_parser, reasoning_parser)
    return CheckpointFacts(model, folder is not None, dtype, parsers.tool.name, parsers.reasoning.name)


def absolute_path(name: str) -> str:
    """Return the folder of a shipped model or of a path; a hub id as it is."""
    return _find(name)[1]


def _find(name: str) -> tuple[Path | None, str]:
    """Return the folder, if it is on this machine, and what names the model to vLLM."""
    folder = SHIPPED.get(name) or Path(os.path.expanduser(name))
    if is_gguf(folder):
        raise InvalidOption(
            "vLLM builds the tokenizer of a GGUF file anew and could get other tokens",
            got=name,
            remedy="Give the folder of the checkpoint",
        )
    if folder.is_dir():
        return folder, str(folder.resolve())
    return next((each.path for each in cached_models() if each.name == name), None), name


def _chat_template(folder: Path) -> str | None:
    config = TokenizerConfig.read(folder)
    if config.chat_template is None:
        return None
    return ChatTemplate(config.chat_template, config.special_tokens).source(has_tools=True)


def _dtype(folder: Path) -> str | None:
    config = read_json(folder / "config.json")
    dtype = config.get("dtype", config.get("torch_dtype"))
    return dtype if isinstance(dtype, str) else None
