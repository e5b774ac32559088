"""Reading of YAML files from strangers: the size before the text, and the syntax alone.

No constructor of YAML runs.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from hasten.core.errors import InvalidOption


def check_file_size(path: Path, max_bytes: int, subject: str = "file") -> None:
    """Raise ``InvalidOption`` for what is no regular file, or exceeds ``max_bytes``."""
    try:
        is_file, num_bytes = path.is_file(), path.stat().st_size
    except (OSError, ValueError) as error:
        raise InvalidOption(f"the file {path} cannot be read", got=getattr(error, "strerror", None) or error) from None
    if not is_file or num_bytes > max_bytes:
        got = f"{num_bytes:,} bytes" if is_file else "no regular file"
        raise InvalidOption(f"the {subject} {path} cannot be read", got=got, allowed=f"a file of up to {max_bytes:,} bytes")


def compose_yaml(content: str) -> yaml.Node | None:
    """Return the root of a document; None if it is empty. Raises ``InvalidOption``."""
    try:
        root: yaml.Node | None = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InvalidOption("this is not YAML", got=" ".join(str(error).split())) from None
    except RecursionError:
        raise InvalidOption("this YAML is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # an escape of a character that does not exist
        raise InvalidOption("this YAML cannot be read", got=error) from None
    return root
