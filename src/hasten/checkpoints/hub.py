"""Resolving a model name: a shipped model, a local folder, or a model of the Hugging Face hub.

The module does not read models. It uses only the standard cache with its own settings (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``), and never downloads pickled weights. Functions import the hub's client where they call it, so
that a shipped model or a folder starts without it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hasten.checkpoints.gguf.gguf_path import MAGIC, SUFFIX, is_gguf
from hasten.core.errors import CheckpointError, InvalidOption, ModelNotFound, nearest

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

_DEMO = Path(__file__).parents[1] / "demo"
SHIPPED = {"demo": _DEMO / "model", "demo-draft": _DEMO / "draft"}
SHIPPED_HEADS = {f"demo-{name}": _DEMO / name for name in ("medusa", "eagle", "exits")}  # not models by themselves

ALLOW_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Subfolders (onnx/, original/) and Mistral's consolidated files repeat the weights in other formats.
IGNORE_PATTERNS = ["*/*", "consolidated*.safetensors"]
MAX_NAME = 4096  # characters; longer paths do not exist
_REVISION = re.compile(r"\w[\w.+@#/-]{0,249}", re.ASCII)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One model in the Hugging Face cache."""

    name: str
    commit: str  # of the newest revision in the cache
    size: int  # bytes on disk, all revisions
    last_modified: float  # seconds since 1970
    path: Path


if TYPE_CHECKING:
    _ProgressBar = tqdm[Any]  # generic in its annotations only
else:
    _ProgressBar = tqdm


class _SilentBar(_ProgressBar):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})


def resolve(name: str, revision: str | None = None, *, quiet: bool = False) -> Path:
    """Return the folder of a model, or its GGUF file.

    Downloads a model of the hub if necessary, and completes an interrupted download. A shipped name takes precedence over a
    folder of that name; ``./demo`` is the folder. Raises ``ModelNotFound``, and ``CheckpointError`` for an incomplete cached copy
    that cannot be completed.
    """
    shipped = (SHIPPED | SHIPPED_HEADS).get(name)
    if shipped is not None:
        if revision is not None:
            raise InvalidOption(f"{name} ships inside hasten and has one revision", got=f"revision {revision!r}")
        if not shipped.is_dir():
            raise ModelNotFound(f"this installation of hasten lacks its model {name!r}", got=shipped, remedy="Install hasten again")
        return shipped
    _check_names(name, revision)
    folder = _expanded(name)
    if os.path.isdir(folder) or (os.path.isfile(folder) and is_gguf(folder)):
        if revision is not None:
            kind = "folder" if os.path.isdir(folder) else "file"
            raise InvalidOption(f"a revision needs a hub model, and this is a {kind}", got=f"revision {revision!r} of {name}")
        _refuse_gguf_folder(folder)
        return folder
    if os.path.isfile(folder):
        remedy = "Make a link to it whose name ends in .gguf" if _begins_as_gguf(folder) else f"Give the folder: {folder.parent}"
        raise ModelNotFound(f"{name} is a file, and a model is a folder or a .gguf file", remedy=remedy)
    if is_gguf(folder):
        raise ModelNotFound("there is no such GGUF file", got=repr(name), remedy=_nearest_model(name))
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFound("there is no such model folder", got=repr(name), remedy=_nearest_model(name))
    return _download(name, revision, quiet)


def resolve_heads(name: str, *, quiet: bool = False) -> Path:
    """Return the folder of draft heads or of exits, as ``resolve`` does.

    Raises ``InvalidOption`` for a GGUF file.
    """
    folder = resolve(name, quiet=quiet)
    if is_gguf(folder):
        raise InvalidOption(f"{folder} is a GGUF file, which holds a whole model", remedy="Give the folder of draft heads or exits")
    return folder


def cached_models() -> list[CachedModel]:
    """Return the models in the Hugging Face cache that have safetensors files, by name. Needs no network."""
    models = []
    for repo in _cached_repos():
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        if any(file.file_name.endswith(".safetensors") for revision in repo.revisions for file in revision.files):
            models.append(
                CachedModel(
                    name=repo.repo_id,
                    commit=newest.commit_hash,
                    size=repo.size_on_disk,
                    last_modified=repo.last_modified,
                    path=newest.snapshot_path,
                )
            )
    return sorted(models, key=lambda model: model.name.lower())


def remove(name: str) -> int:
    """Remove every revision of a model from the cache and return the freed bytes.

    Raises ``ModelNotFound``.
    """
    if name in SHIPPED:
        raise InvalidOption(f"{name} ships inside hasten and is not in the cache", remedy="There is nothing to remove")
    repos = {repo.repo_id: repo for repo in _cached_repos()}
    if name not in repos:
        known = [*repos] or ["nothing: the cache is empty"]
        raise ModelNotFound("the cache has no such model", got=repr(name), remedy=nearest(name, known))
    from huggingface_hub import constants, scan_cache_dir

    # The client finds revisions by commit alone, and a copy of a repository has the same commits: show it this one only.
    cache = dataclasses.replace(scan_cache_dir(constants.HF_HUB_CACHE), repos=frozenset([repos[name]]))
    strategy = cache.delete_revisions(*(revision.commit_hash for revision in repos[name].revisions))
    strategy.execute()
    return strategy.expected_freed_size


def _check_names(name: str, revision: str | None) -> None:
    """Raise ``ModelNotFound`` for names that no file system and no hub can have."""
    if not name or len(name) > MAX_NAME or "\0" in name:
        raise ModelNotFound("this is not the name of a model", got=repr(name[:80]), allowed=f"1 to {MAX_NAME} characters")
    # A revision is also the path of a file in the cache.
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ModelNotFound(
            "this is not a revision",
            got=repr(revision[:80]),
            allowed="a branch, a tag or a commit of up to 250 characters",
            remedy="Leave --revision out for the newest",
        )


def _refuse_gguf_folder(folder: Path) -> None:
    """Raise ``ModelNotFound`` for a folder that holds GGUF files and no other model: each of them is one."""
    if not os.path.isdir(folder) or os.path.lexists(folder / "config.json"):
        return
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".gguf"))
    except OSError:
        return  # reading the model says what is wrong
    if names:
        raise ModelNotFound(
            f"{folder} holds GGUF files, and each is a model of its own",
            got=", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
            remedy=f"Give the file: {folder / names[0]}",
        )


def _begins_as_gguf(file: Path) -> bool:
    """Whether the content is GGUF: the files of some tools, such as Ollama's blobs, have no suffix."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _expanded(name: str) -> Path:
    """Return the path with ``~`` replaced by the home folder, if there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _download(name: str, revision: str | None, quiet: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, IncompleteSnapshotError, RevisionNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=ALLOW_PATTERNS,
            ignore_patterns=IGNORE_PATTERNS,
            tqdm_class=_SilentBar if quiet else None,
        )
    except IncompleteSnapshotError:
        raise CheckpointError(
            f"the copy of {name} in the cache is incomplete, and the hub cannot be reached",
            remedy=f"Go online and run: hasten pull {name}",
        ) from None
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated", remedy="Accept its terms on its page on the hub, then set HF_TOKEN or run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{name} has no such revision", got=repr(revision), remedy="Leave --revision out for the newest"
        ) from error
    except Exception as error:
        # The hub client passes on exceptions of its HTTP library; any other exception is a bug in hasten.
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith(("huggingface_hub", "http")):
            raise
        raise ModelNotFound(_reason(error), got=repr(name), remedy=_nearest_model(name)) from error
    if "gguf" in name.lower() and not any(Path(folder).glob("*.safetensors")):
        raise ModelNotFound(
            f"{name} has no safetensors files, and hasten downloads no GGUF files",
            remedy=f"Download one with: hf download {name} NAME.gguf, and give its path",
        )
    if not os.path.isfile(Path(folder) / "config.json"):
        raise ModelNotFound(f"{name} has no config.json, so it is not a model", remedy=_nearest_model(name))
    return Path(folder)


def _reason(error: Exception) -> str:
    """Return why a model could not be downloaded."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such public model, and no such folder exists"
    if constants.HF_HUB_OFFLINE:
        return "no such folder exists, the cache does not have this model, and HF_HUB_OFFLINE forbids access to the hub"
    if isinstance(error, LocalEntryNotFoundError):
        return "no such folder exists, the cache does not have this model, and the hub cannot be reached"
    return f"the hub refused ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"


def _cached_repos() -> list[CachedRepoInfo]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):  # no cache, or a path that is no folder or cannot be read
        return []
    return [repo for repo in repos if repo.repo_type == "model" and repo.revisions]


def _nearest_model(name: str) -> str:
    """Return a remedy with the nearest model that is shipped, cached, or in a sibling folder."""
    parent = _expanded(name).parent
    try:
        entries = [entry for entry in parent.iterdir() if entry.suffix == SUFFIX or os.path.isfile(entry / "config.json")]
        siblings = [str(parent / entry.name) for entry in entries]
    except (OSError, ValueError):
        siblings = []
    return nearest(name, [*SHIPPED, *SHIPPED_HEADS, *(model.name for model in cached_models()), *siblings])
