"""``new_file``: a file that appears complete or not at all, and that only the user may read."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hasten.core.errors import CapacityError, HastenError, InvalidOption

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """Yield a file of ``num_bytes`` bytes to write; at the end it replaces ``path``.

    It replaces the target of a link. An exception removes it. Raises ``CapacityError`` if the disk lacks the space, and
    ``InvalidOption`` if the path cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        folder = target.parent
        if target.exists() and not target.is_file():  # replacing a device or a pipe would take it from other programs
            raise OSError(errno.EINVAL, "it is not a regular file")
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise OSError(errno.ENOSPC, f"it needs {num_bytes:,} bytes, and the disk has {free:,} free bytes")
        # Hidden and without the suffix, so that no listing shows what a killed process left.
        partial = folder / f".{target.name[:200]}.{os.getpid()}.{time.monotonic_ns()}.partial"
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        raise _writing_error(path, error) from None
    try:
        with open(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
        _sync(folder)
    except OSError as error:
        raise _writing_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):  # it has its new name
            partial.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _writing_error(path: Path, error: OSError | ValueError) -> HastenError:
    got = getattr(error, "strerror", None) or error
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return CapacityError(f"{path} cannot be written", got=got, remedy="Free space there, or give a path on another disk")
    return InvalidOption(f"{path} cannot be written", got=got, remedy="Give the path of a file in a folder that exists")
