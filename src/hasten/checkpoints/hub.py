"""Where a model name leads: a shipped model, a folder, or the Hugging Face cache and hub.

It finds folders and knows nothing of what is in them. Only the standard cache is used, with its own settings (``HF_HOME``,
``HF_HUB_CACHE``, ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``). Pickled weights are never downloaded.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core.errors import CheckpointError, InvalidOption, ModelNotFound, nearest

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo
    from tqdm.auto import tqdm

_DEMO = Path(__file__).parents[1] / "demo"
SHIPPED = {"demo": _DEMO / "model", "demo-draft": _DEMO / "draft"}
SHIPPED_HEADS = {f"demo-{name}": _DEMO / name for name in ("medusa", "eagle", "exits")}  # no models of their own

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Folders repeat the weights in other formats (onnx/, original/); so do Mistral's consolidated files.
UNWANTED = ["*/*", "consolidated*.safetensors"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    name: str
    commit: str  # of the newest revision in the cache
    size: int  # bytes on disk, all revisions
    last_modified: float  # seconds since 1970
    path: Path


def resolve(name: str, revision: str | None = None, *, quiet: bool = False) -> Path:
    """The folder of a model; downloads it if need be, and resumes a download that was interrupted.

    A shipped name wins over a folder of that name; write ``./demo`` for the folder. Raises ``ModelNotFound``, and
    ``CheckpointError`` for a cached copy that is not whole and cannot be completed.
    """
    if name in SHIPPED or name in SHIPPED_HEADS:
        return _shipped(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InvalidOption("revision is for models of the hub, and this is a folder", got=f"{revision!r} with {name}")
        return folder
    if folder.is_file():
        raise ModelNotFound(f"{name} is a file, and a model is a folder", remedy=f"Give the folder: {folder.parent}")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelNotFound("there is no such model folder", got=repr(name), remedy=_remedy(name))
    return _download(name, revision, quiet)


def cached_models() -> list[CachedModel]:
    """The models in the Hugging Face cache that have safetensors, by name. Reads the disk; needs no network."""
    found = []
    for repo in _cached_repos():
        newest = max(repo.revisions, key=lambda revision: revision.last_modified)
        if any(file.file_name.endswith(".safetensors") for revision in repo.revisions for file in revision.files):
            found.append(
                CachedModel(
                    name=repo.repo_id,
                    commit=newest.commit_hash,
                    size=repo.size_on_disk,
                    last_modified=repo.last_modified,
                    path=newest.snapshot_path,
                )
            )
    return sorted(found, key=lambda model: model.name.lower())


def remove(name: str) -> int:
    """Removes every revision of a model from the cache; returns the bytes that this freed. Raises ``ModelNotFound``."""
    if name in SHIPPED:
        raise InvalidOption(f"{name} ships inside hasten and is not in the cache", remedy="There is nothing to remove")
    repos = {repo.repo_id: repo for repo in _cached_repos()}
    if name not in repos:
        known = [*repos] or ["nothing: the cache is empty"]
        raise ModelNotFound("the cache has no such model", got=repr(name), remedy=nearest(name, known))
    from huggingface_hub import scan_cache_dir

    # A copy of a repository has the same commits, and the client finds revisions by commit alone: show it this one only.
    alone = dataclasses.replace(scan_cache_dir(cache_folder()), repos=frozenset([repos[name]]))
    strategy = alone.delete_revisions(*(revision.commit_hash for revision in repos[name].revisions))
    strategy.execute()
    return strategy.expected_freed_size


def offline() -> bool:
    """Whether the hub is out of bounds (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _shipped(name: str, revision: str | None) -> Path:
    if revision is not None:
        raise InvalidOption(f"{name} ships inside hasten and has one revision", got=f"revision {revision!r}")
    folder = (SHIPPED | SHIPPED_HEADS)[name]
    if not folder.is_dir():
        raise ModelNotFound(f"this installation of hasten lacks its model {name!r}", got=str(folder), remedy="Install hasten again")
    return folder


def _download(name: str, revision: str | None, quiet: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, IncompleteSnapshotError, RevisionNotFoundError

    bar = _silent_bar() if quiet else None
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED, tqdm_class=bar)
    except IncompleteSnapshotError:
        raise CheckpointError(
            f"the copy of {name} in the cache is not whole, and the hub cannot be reached",
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
        # The hub client lets its HTTP library's exceptions through; anything else is a fault of hasten.
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith(("huggingface_hub", "http")):
            raise
        raise _not_found(name, error) from error
    if not (Path(folder) / "config.json").is_file():
        raise ModelNotFound(f"{name} has no config.json, so it is not a model", remedy=_remedy(name))
    return Path(folder)


def _silent_bar() -> type[tqdm[Any]]:
    if TYPE_CHECKING:
        shown = tqdm[Any]  # generic in its annotations only
    else:
        from tqdm.auto import tqdm as shown

    class SilentBar(shown):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return SilentBar


def _not_found(name: str, error: Exception) -> ModelNotFound:
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        what = "the hub has no such public model, nor is there such a folder"
    elif offline():
        what = "there is no such folder, the cache does not have this model, and HF_HUB_OFFLINE keeps hasten off the hub"
    elif isinstance(error, LocalEntryNotFoundError):
        what = "there is no such folder, the cache does not have this model, and the hub cannot be reached"
    else:
        what = f"the hub refused ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
    return ModelNotFound(what, got=repr(name), remedy=_remedy(name))


def _cached_repos() -> list[CachedRepoInfo]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(cache_folder()).repos
    except CacheNotFound:
        return []
    return [repo for repo in repos if repo.repo_type == "model" and repo.revisions]


def _remedy(name: str) -> str:
    """The nearest model that is already here: shipped, in the cache, or a folder beside the one that was named."""
    path = Path(name).expanduser()
    beside = [str(path.parent / entry.name) for entry in _subfolders(path.parent) if (entry / "config.json").is_file()]
    return nearest(name, [*SHIPPED, *SHIPPED_HEADS, *(model.name for model in cached_models()), *beside])


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
