"""``hasten pull``: a model of the hub into the local cache."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, one_model


def pull(
    name: ModelArgument = None,
    model: ModelOption = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit; the newest if left out.")] = None,
    debug: Debug = False,
) -> None:
    """Download a model of the Hugging Face hub, or complete a download that was interrupted; prints its folder."""
    from hasten.checkpoints.hub import resolve

    print(resolve(one_model(name, model), revision, quiet=not sys.stderr.isatty()))
