"""``TokenizerConfig``: the special tokens and the chat template of a checkpoint.

It reads ``tokenizer_config.json``, ``special_tokens_map.json`` (older checkpoints), ``chat_template.jinja`` and
``chat_templates/*.jinja`` as transformers does, without importing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.checkpoints.json_values import read_json
from hasten.checkpoints.regular_file import has_file
from hasten.core.errors import CheckpointError, show

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FILE = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """``chat_template`` is the source text, or the texts by name where a checkpoint has several.

    ``special_tokens`` are the named ones (``bos_token``, ``eos_token``, ``image_token``, ...), as transformers passes them to
    chat templates. ``values`` is ``tokenizer_config.json`` as it is.
    """

    special_tokens: Mapping[str, str]
    chat_template: str | dict[str, str] | None
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TokenizerConfig:
        """Read the files that are there. Raises ``CheckpointError``."""
        values = _read(folder / _FILE)
        special_tokens_map = folder / "special_tokens_map.json"
        # transformers reads the older file only where tokenizer_config.json does not list the tokens itself.
        tokens = values if "added_tokens_decoder" in values else values | _read(special_tokens_map)
        return cls(dict(_special_tokens(tokens, folder)), _chat_template(values, folder), values)


MAX_TEMPLATE_BYTES = 1_000_000  # of a template in a file of its own


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if has_file(file) else {}


def _special_tokens(values: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of each named special token. A name that is null has no token."""
    for name, value in values.items():
        if name in _NAMES and value is not None:
            yield name, _token_text(value, name, folder)
        elif name.endswith("_token") and isinstance(value, str):
            yield name, value
        elif name in ("extra_special_tokens", "model_specific_special_tokens") and isinstance(value, dict):
            for key, token in value.items():
                yield key, _token_text(token, key, folder)


def _token_text(value: object, name: str, folder: Path) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CheckpointError(
            f"{name} in {folder / _FILE} is not a token",
            got=show(value),
            allowed='a text or {"content": text}',
            remedy="Correct the file",
        )
    return text


def _chat_template(values: Mapping[str, Any], folder: Path) -> str | dict[str, str] | None:
    """Return the template; files of templates come before ``tokenizer_config.json``."""
    files = {"default": folder / "chat_template.jinja"} if has_file(folder / "chat_template.jinja") else {}
    if (folder / "chat_templates").is_dir():
        files |= {file.stem: file for file in sorted((folder / "chat_templates").glob("*.jinja"))}
    if files:
        templates = {name: _read_text(file) for name, file in files.items()}
        return templates["default"] if list(templates) == ["default"] else templates
    template = values.get("chat_template")
    if template is None or isinstance(template, str):
        return template or None
    entries = template if isinstance(template, list) else [template]
    if not all(isinstance(e, dict) and isinstance(e.get("name"), str) and isinstance(e.get("template"), str) for e in entries):
        raise CheckpointError(
            f"chat_template in {folder / _FILE} is not a template",
            got=show(template),
            allowed='a text or a list of {"name": ..., "template": ...}',
            remedy="Correct the file",
        )
    return {entry["name"]: entry["template"] for entry in entries} or None


def _read_text(file: Path) -> str:
    try:
        if not has_file(file) or file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise OSError(f"it is longer than {MAX_TEMPLATE_BYTES:,} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the chat template {file} cannot be read", got=error, remedy="Copy it again") from None
