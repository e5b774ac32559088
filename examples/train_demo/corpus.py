"""The demo model's text: the sources of the CPython standard library and of the CPython documentation.

Both are under the PSF licence. The SHA-256 of its name decides whether a file is held out. The split is therefore the same on every
machine, and no held-out byte is ever trained on.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELDOUT_BYTES_PER_KIND = 220_000
HELDOUT_FILE_BYTES = range(1_500, 40_000)
# Tables, and generated copies of other files of the corpus.
EXCLUDED = ("site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3/tests/data", "_sysconfigdata", "/cjkencodings")


@dataclass(frozen=True, slots=True)
class Document:
    name: str
    kind: str  # "code" or "docs"
    text: str


def _read(root: Path, pattern: str, kind: str) -> list[Document]:
    documents, seen = [], set()
    for path in sorted(root.rglob(pattern)):
        name = f"{kind}/{path.relative_to(root).as_posix()}"
        if path.is_dir() or any(part in name for part in EXCLUDED):
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue  # a test file in another encoding
        digest = hashlib.sha256(text.encode()).digest()
        if 200 <= len(text) <= 1_000_000 and digest not in seen:
            seen.add(digest)
            documents.append(Document(name, kind, text))
    return documents


def load(docs: Path) -> tuple[list[Document], list[Document]]:
    """Return the training documents and the held-out documents.

    ``docs`` holds the documentation sources: ``Doc/`` of a CPython checkout, or the ``_sources`` folder of a distribution's Python
    documentation package.
    """
    code = _read(Path(sysconfig.get_path("stdlib")), "*.py", "code")
    text = _read(docs, "*.rst*", "docs")
    if not text:
        raise SystemExit(f"no documentation sources (*.rst) under {docs}; pass --docs DIR")
    train: list[Document] = []
    held_out: list[Document] = []
    for documents in (code, text):
        remaining = HELDOUT_BYTES_PER_KIND
        for document in sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest()):
            size = len(document.text.encode())
            if size in HELDOUT_FILE_BYTES and size <= remaining:
                remaining -= size
                held_out.append(document)
            else:
                train.append(document)
    return train, held_out
