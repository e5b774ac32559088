"""``hasten kv``: save the KV cache of a prompt to a file, and load, list and remove such files."""

from __future__ import annotations

import dataclasses
import json as encoder
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.engine_options import MODEL_HELP, SINGLE_REQUEST_ENGINE, Debug, Json, load_llm
from hasten.cli.generate import read_prompts, stream_output
from hasten.cli.kv_names import NAME_HELP, SUFFIX, is_bare, kv_folder, kv_path, load_files
from hasten.cli.options import OptionValues, with_options
from hasten.cli.report import megabytes, print_table
from hasten.cli.sampling_options import SAMPLING, merge_settings
from hasten.core.errors import HastenError, InvalidOption, KvFileError

kv = typer.Typer(help="Save, load, list and remove KV caches of prompts.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
PromptFile = Annotated[
    str | None, typer.Option("--prompt-file", "-f", metavar="FILE", help="The prompt from a file; - reads standard input.")
]
PromptIds = Annotated[str | None, typer.Option("--prompt-ids", metavar="ID,ID,...", help="The prompt as token ids.")]
KV_SAMPLING = SAMPLING.without(("n", "beam_width", "length_penalty", "early_stopping", "logprobs"))


@kv.command()
@with_options(SINGLE_REQUEST_ENGINE)
def save(
    model: Model,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help=NAME_HELP, show_default=False)],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")] = None,
    prompt_file: PromptFile = None,
    prompt_ids: PromptIds = None,
    debug: Debug = False,
    *,
    engine: OptionValues,
) -> None:
    """Compute the KV cache of a prompt, and save its whole blocks."""
    path = kv_path(out)
    prompts = read_prompts(_listed(prompt), _listed(prompt_file), _listed(prompt_ids))
    if len(prompts) > 1:
        raise InvalidOption("a file holds the KV cache of one prompt", got=f"{len(prompts)} prompts", remedy="Give one")
    file = load_llm(model, engine).save_kv(prompts[0], path)
    print(f"saved {file.num_tokens} tokens, {megabytes(file.num_bytes)} in {file.seconds:.2f} s: {path}", file=sys.stderr)


@kv.command()
@with_options(KV_SAMPLING, SINGLE_REQUEST_ENGINE)
def load(
    model: Model,
    file: Annotated[str, typer.Argument(metavar="FILE", help=NAME_HELP, show_default=False)],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="A prompt that begins with the saved one; - reads standard input."),
    ] = None,
    prompt_file: PromptFile = None,
    prompt_ids: PromptIds = None,
    debug: Debug = False,
    *,
    sampling: OptionValues,
    engine: OptionValues,
) -> None:
    """Load the KV cache of a prompt, and answer a prompt that begins with it."""
    sources = [_listed(prompt), _listed(prompt_file), _listed(prompt_ids)]
    prompts = read_prompts(*sources) if any(sources) else []
    if len(prompts) > 1:
        raise InvalidOption("one prompt is answered", got=f"{len(prompts)} prompts", remedy="Use hasten generate --load-kv")
    llm = load_llm(model, engine)
    load_files(llm, [file])
    if prompts:
        stream_output(llm, prompts[0], merge_settings(llm.default_sampling_params(), None, sampling))


@kv.command()
def ls(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A folder; that of bare names in hasten's cache folder if left out.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List files of KV caches."""
    from hasten.checkpoints.kv_file import open_kv_file

    where = kv_folder() if folder is None else folder
    try:
        paths = sorted(path for path in where.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise InvalidOption(f"the folder {where} cannot be read", got=error.strerror) from None
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            with open_kv_file(path) as opened:
                facts = dataclasses.asdict(opened.facts)
        except KvFileError as error:  # another file, or a damaged one
            print(f"warning: {error}", file=sys.stderr)
            continue
        del facts["num_new_blocks"], facts["seconds"]
        rows.append({"name": path.stem, **facts})
    if json:
        print(encoder.dumps(rows))
        return
    columns = ("NAME", "MODEL", "TOKENS", "SIZE", "DTYPE", "KERNELS")
    print_table(columns, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    size = megabytes(row["num_bytes"])
    return (row["name"], row["model"], f"{row['num_tokens']:,}", size, row["kv_cache_dtype"], row["kernels"])


@kv.command()
def rm(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help=NAME_HELP, show_default=False)],
    debug: Debug = False,
) -> None:
    """Remove files of KV caches."""
    from hasten.checkpoints.kv_file import open_kv_file

    for name in files:
        path = kv_path(name)
        if not is_bare(name):  # a path may be that of any file, which is not removed by mistake
            with open_kv_file(path):
                pass
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError as error:
            raise HastenError(f"{path} cannot be removed", got=error.strerror, remedy="See hasten kv ls") from None
        print(f"removed {name}, {megabytes(size)} freed", file=sys.stderr)


def _listed(value: str | None) -> list[str]:
    return [] if value is None else [value]
