"""The errors that hasten raises for its user. A bug in hasten itself raises ``AssertionError``.

::

    HastenError
    ├── InvalidRequest       a prompt, a sampling setting or a conversation that cannot run
    │   └── PromptTooLong    prompt and output exceed the context or the KV pool
    ├── InvalidOption        an option of the engine, of a command or of a method
    ├── CheckpointError      a model folder that cannot be read, understood or trusted
    │   ├── ModelNotFound
    │   └── UnsupportedModel
    └── CapacityError        the machine lacks the memory

A message is one sentence: what is wrong, the value, the allowed values and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HastenError(Exception):
    """Base of all errors meant for the user; ``str(error)`` is one sentence."""

    def __init__(self, what: str, *, got: object = None, allowed: object = None, remedy: str | None = None) -> None:
        self.what, self.got, self.allowed, self.remedy = what, got, allowed, remedy
        details = [f"got {got}"] if got is not None else []
        details += [f"allowed: {allowed}"] if allowed is not None else []
        message = what if not details else f"{what}: {'; '.join(details)}"
        super().__init__(f"{message}. {remedy}." if remedy else f"{message}.")

    def fields(self) -> dict[str, str | None]:
        """Return the message's parts after ``what`` as plain data; another process rebuilds the error."""
        parts = {"got": self.got, "allowed": self.allowed, "remedy": self.remedy}
        return {name: None if part is None else str(part) for name, part in parts.items()}


class InvalidRequest(HastenError):
    """The request cannot run; other requests are not affected."""


class PromptTooLong(InvalidRequest):
    """The prompt, or prompt plus ``max_tokens``, exceeds the context or the KV pool."""


class InvalidOption(HastenError):
    """An option that does not exist or has a value out of range."""


class CheckpointError(HastenError):
    """A model folder that cannot be read, understood or trusted."""


class ModelNotFound(CheckpointError):
    """No such folder, and no such model in the local cache or on the hub."""


class UnsupportedModel(CheckpointError):
    """A valid checkpoint of a kind that hasten does not support."""


class CapacityError(HastenError):
    """The machine lacks the memory; the message names the needed and the available amount."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the closest choice, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}" if close else f"Choose one of {', '.join(known)}"
