"""``new_folder``: a folder that appears complete or not at all.

::

    OUT.partial/.unfinished   while it is written; after a kill, the next run begins again
    OUT/                      renamed when everything is on the disk
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hasten.core.errors import CapacityError, HastenError, InvalidOption
from hasten.ops.cpu.memory import format_bytes

SUFFIX = ".partial"
_MARK = ".unfinished"  # tells a folder of a killed run from one of the user
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(out: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a folder beside ``out`` that becomes ``out`` at the end. An exception removes it.

    Raises ``InvalidOption`` if ``out`` exists and is not an empty folder, or cannot be written. Raises ``CapacityError`` if the
    disk has less than ``needed_bytes`` or becomes full.
    """
    target = new_target(out)
    partial = partial_folder(target)
    try:
        _remove_unfinished(partial)
        check_space(target, needed_bytes)
        partial.mkdir(parents=True)
    except OSError as error:
        raise writing_error(out, error) from None
    try:
        (partial / _MARK).touch()
        yield partial
        flush(partial)
        (partial / _MARK).unlink()
        _sync(partial)
        publish(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise writing_error(out, error) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def new_target(out: Path) -> Path:
    """Return the path of a new folder, without links.

    Raises ``InvalidOption`` if it exists and is not an empty folder, or cannot be made.
    """
    try:
        target = Path(os.path.realpath(out))
        if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
            raise InvalidOption(
                "the output path is not an empty folder", got=str(target), remedy="Give a new folder, or empty this one"
            )
        if target == Path(os.path.realpath(".")):  # a process whose folder is replaced finds no relative path any more
            raise InvalidOption("the output path is the current folder", got=str(target), remedy="Give the path of a new folder")
        parent = next(folder for folder in target.parents if os.path.lexists(folder))
        if not (os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK)):
            raise OSError(errno.EACCES, f"{parent} is no folder that hasten may write to")
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        raise writing_error(out, error) from None
    return target


def partial_folder(target: Path) -> Path:
    """Return the folder in which ``target`` grows, beside it so that renaming is atomic."""
    return target.with_name(target.name + SUFFIX)


def publish(folder: Path, target: Path) -> None:
    """Give a folder its name, which is new or that of an empty folder. Raises ``OSError``."""
    os.replace(folder, target)
    _sync(target.parent)


def _remove_unfinished(partial: Path) -> None:
    """Remove what a killed run left. Raises ``InvalidOption`` for anything else of this name."""
    if (partial / _MARK).exists():
        shutil.rmtree(partial)
    elif os.path.isdir(partial) and not os.listdir(partial):
        partial.rmdir()
    elif os.path.lexists(partial):
        raise InvalidOption(
            "the output is first written to a path that exists", got=str(partial), remedy="Rename it, or give another folder"
        )


def check_space(target: Path, needed_bytes: int) -> None:
    """Raise ``CapacityError`` if the disk of ``target`` has less than ``needed_bytes``."""
    parent = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise CapacityError(
            f"the disk of {target} is too small for the output",
            got=format_bytes(needed_bytes),
            allowed=f"up to the {format_bytes(free)} that are free",
            remedy="Free space there, or give a folder on another disk",
        )


def writing_error(out: Path, error: OSError | ValueError) -> HastenError:
    """Return ``CapacityError`` for a full disk, and ``InvalidOption`` for another reason."""
    got = getattr(error, "strerror", None) or error
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return CapacityError(f"{out} cannot be written", got=got, remedy="Free space there, or give a folder on another disk")
    return InvalidOption(f"{out} cannot be written", got=got, remedy="Give another folder")


def flush(folder: Path) -> None:
    """Write every file to the disk.

    Otherwise a power failure could leave a renamed folder without contents.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
