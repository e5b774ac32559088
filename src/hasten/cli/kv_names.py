"""Names of KV files on the command line: a bare name is that of a file in hasten's cache folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.core.cache_folder import cache_folder
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

SUFFIX = ".safetensors"
NAME_HELP = "A file, or a bare name of one in hasten's cache folder."

LoadKv = Annotated[
    list[str] | None,
    typer.Option("--load-kv", metavar="FILE", help="Load saved KV blocks first: a file, or a name of hasten kv. May be repeated."),
]


def kv_folder() -> Path:
    """Return the folder of files with a bare name; make it if necessary. Raises ``HastenError``."""
    folder = cache_folder() / "kv"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def is_bare(name: str) -> bool:
    """Whether a name has neither a folder nor a suffix."""
    return "/" not in name and not Path(name).suffix


def kv_path(name: str) -> Path:
    """Return the file of a name. Raises ``InvalidOption`` for an empty one."""
    if not name or name in (".", ".."):
        raise InvalidOption("this is no name of a file of KV blocks", got=repr(name), remedy="Give a file or a name")
    return kv_folder() / f"{name}{SUFFIX}" if is_bare(name) else Path(name)


def load_files(llm: LLM, names: Iterable[str] | None) -> None:
    """Load files of KV blocks, and say on standard error what they held."""
    for name in names or ():
        file = llm.load_kv(kv_path(name))
        print(f"loaded {name}: {file.num_tokens} tokens in {file.seconds:.2f} s", file=sys.stderr)
