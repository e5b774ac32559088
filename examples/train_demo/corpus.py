"""The demo model's text: the CPython standard library's source and the CPython documentation's sources.

Both are under the PSF licence. Held-out files are chosen by the SHA-256 of their names, so the split is the same on every
machine and no held-out byte is ever trained on.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELDOUT_BYTES_PER_KIND = 220_000
HELDOUT_FILE_BYTES = range(1_500, 40_000)
# Tables and generated copies: no language in them, or the same words as another file of the corpus.
LEFT_OUT = ("site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3/tests/data", "_sysconfigdata", "/cjkencodings")


@dataclass(frozen=True, slots=True)
class Document:
    name: str
    kind: str  # "code" or "docs"
    text: str


def _read(root: Path, pattern: str, kind: str) -> list[Document]:
    documents, seen = [], set()
    for path in sorted(root.rglob(pattern)):
        name = f"{kind}/{path.relative_to(root).as_posix()}"
        if path.is_dir() or any(part in name for part in LEFT_OUT):
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue  # files that test other encodings
        digest = hashlib.sha256(text.encode()).digest()
        if 200 <= len(text) <= 1_000_000 and digest not in seen:
            seen.add(digest)
            documents.append(Document(name, kind, text))
    return documents


def load(docs: Path) -> tuple[list[Document], list[Document]]:
    """The training documents and the held-out documents.

    ``docs`` holds the documentation sources: ``Doc/`` of a CPython checkout, or the ``_sources`` folder that a
    distribution's Python documentation package installs.
    """
    code = _read(Path(sysconfig.get_path("stdlib")), "*.py", "code")
    text = _read(docs, "*.rst*", "docs")
    if not text:
        raise SystemExit(f"no documentation sources (*.rst) under {docs}; pass --docs DIR")
    train: list[Document] = []
    held_out: list[Document] = []
    for documents in (code, text):
        room = HELDOUT_BYTES_PER_KIND
        for document in sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest()):
            size = len(document.text.encode())
            if size in HELDOUT_FILE_BYTES and size <= room:
                room -= size
                held_out.append(document)
            else:
                train.append(document)
    return train, held_out
