"""``hasten rm``: take a model out of the local cache."""

from __future__ import annotations

import sys

from hasten.cli.engine_options import Debug, ModelArgument, ModelOption, one_model
from hasten.cli.print_table import megabytes


def rm(name: ModelArgument = None, model: ModelOption = None, debug: Debug = False) -> None:
    """Remove a model, in all its revisions, from the Hugging Face cache."""
    from hasten.checkpoints.hub import remove

    chosen = one_model(name, model)
    print(f"removed {chosen}, {megabytes(remove(chosen))} freed", file=sys.stderr)
