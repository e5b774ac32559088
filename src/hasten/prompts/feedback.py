"""``FeedbackStore``: opinions of outputs, with the variants they came from, in a SQLite file.

An entry is on the disk when ``add`` returns. Prompts and outputs are not stored unless they are given.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from hasten.caching.sqlite_file import Deadline, connect, failure
from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import HastenError, InvalidOption, printable, show
from hasten.core.field_type import Length, Range

APPLICATION_ID = 0x48734662  # "HsFb"
VERSION = 1  # of the table
SCHEMA = (
    "CREATE TABLE feedback (id INTEGER PRIMARY KEY, time REAL NOT NULL, variant TEXT NOT NULL, digest TEXT NOT NULL,"
    " is_good INTEGER NOT NULL, model TEXT, output_id TEXT, comment TEXT, prompt TEXT, output TEXT)"
)
COLUMNS = ("time", "variant", "digest", "is_good", "model", "output_id", "comment", "prompt", "output")
TIMEOUT = 10.0  # seconds that a call waits for other processes
MAX_TEXT = 1 << 20  # characters of a prompt or an output
_DIGEST_LENGTH = 64
RECORD_SOME = "Record some with hasten prompt feedback add"
_ANOTHER_FILE = "Choose another file"

Name = Annotated[str, Length(1, 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One opinion of one output. Raises ``InvalidOption`` that names every wrong field."""

    variant: Name  # its name
    digest: Annotated[str, Length(_DIGEST_LENGTH, _DIGEST_LENGTH)]  # SHA-256 of its text, in hexadecimal
    is_good: bool
    time: Annotated[float, Range(0, 1e11)]  # seconds since 1970
    model: Name | None = None
    output_id: Name | None = None  # of the request or the output
    comment: Annotated[str, Length(0, 10_000)] | None = None
    prompt: Annotated[str, Length(0, MAX_TEXT)] | None = None
    output: Annotated[str, Length(0, MAX_TEXT)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "field of a feedback", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if not set(self.digest) <= set("0123456789abcdef"):
            yield Fault("digest", "a SHA-256 in hexadecimal")


@dataclass(frozen=True, slots=True)
class FeedbackCount:
    """The opinions of one variant. Variants of the same name and other texts are different ones."""

    variant: str
    digest: str
    num_good: int
    num_bad: int


class FeedbackStore:
    """Feedback in a file that its owner alone may read; several processes may use it.

    Raises ``InvalidOption`` for a file that is not one, and ``HastenError`` where it cannot be used.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path, self._deadline = Path(path).expanduser().absolute(), Deadline()
        self._deadline.start(TIMEOUT)
        with self._errors():
            if not self._path.exists():
                if not create:
                    raise InvalidOption(
                        "there is no feedback", got=self._path, remedy="Record some with hasten prompt feedback add"
                    )
                self._path.touch(mode=0o600)
            elif not self._path.is_file():
                raise InvalidOption("the file of feedback is no ordinary file", got=self._path, remedy=_ANOTHER_FILE)
            self._connection = connect(self._path, TIMEOUT, self._deadline)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def add(self, feedback: Feedback) -> None:
        """Store one opinion; it is on the disk then."""
        values = [getattr(feedback, name) for name in COLUMNS]
        self._execute(f"INSERT INTO feedback ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})", values)

    def newest(self, limit: int) -> list[Feedback]:
        """Return the newest opinions, newest first."""
        query = f"SELECT {', '.join(COLUMNS)} FROM feedback ORDER BY id DESC LIMIT ?"
        return [self._read(row) for row in self._execute(query, [limit])]

    def counts(self) -> list[FeedbackCount]:
        """Return how many are good and bad, per variant, by name and digest."""
        query = (
            "SELECT variant, digest, sum(is_good = 1), sum(is_good = 0), count(*) FROM feedback"
            " GROUP BY variant, digest ORDER BY variant, digest"
        )
        found = []
        for variant, digest, num_good, num_bad, num_rows in self._execute(query):
            texts = self._text(variant), self._text(digest)
            if None in texts or None in (num_good, num_bad) or num_good + num_bad != num_rows:
                raise self._damaged()
            found.append(FeedbackCount(texts[0] or "", texts[1] or "", num_good, num_bad))
        return found

    def _open(self) -> None:
        """Make the table in an empty file. Raises ``InvalidOption`` for the file of another program."""
        # An opinion cannot be computed again, so a commit waits for the disk.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            ((application_id,),) = self._connection.execute("PRAGMA application_id")
            ((version,),) = self._connection.execute("PRAGMA user_version")
            tables = [text for (text,) in self._connection.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL")]
            if (application_id, version, tables) == (0, 0, []):
                self._connection.execute(SCHEMA)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
            elif (application_id, version, tables) != (APPLICATION_ID, VERSION, [SCHEMA.encode()]):
                what = "is a database of another program, or of another version of hasten"
                raise InvalidOption(f"the file of feedback {what}", got=self._path, remedy=_ANOTHER_FILE)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            self._deadline.start(TIMEOUT)
            with closing(self._connection.execute(statement, values)) as cursor:
                return cursor.fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of SQLite and of the system into one sentence."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
                raise InvalidOption("the file of feedback is no SQLite file", got=self._path, remedy=_ANOTHER_FILE) from None
            what = f"the file of feedback cannot be used, because {failure(error)}"
            raise HastenError(what, got=self._path, remedy="Make it usable, or choose another file") from None
        except (OSError, ValueError) as error:
            what = f"the file of feedback cannot be made: {printable(error)}"
            raise InvalidOption(what, got=show(str(self._path)), remedy=_ANOTHER_FILE) from None

    def _read(self, row: Sequence[Any]) -> Feedback:
        """Return a row as feedback. SQLite stores any type in any column, and a damaged file any text."""
        values = dict(zip(COLUMNS, row, strict=True))
        is_good, moment = values.pop("is_good"), values.pop("time")
        if is_good not in (0, 1) or type(moment) is not float or not math.isfinite(moment):
            raise self._damaged()
        try:
            return Feedback(is_good=is_good == 1, time=moment, **{name: self._text(value) for name, value in values.items()})
        except InvalidOption:
            raise self._damaged() from None

    def _text(self, value: object) -> Any:
        """Return a text or None. Texts arrive as bytes."""
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise self._damaged()
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise self._damaged() from None

    def _damaged(self) -> HastenError:
        return HastenError("the file of feedback is damaged", got=self._path, remedy="Move it away, and record into a new one")
