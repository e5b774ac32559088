"""Every error that hasten raises for its user. A bug in hasten itself shows as an ``AssertionError`` instead.

::

    HastenError
    ├── InvalidRequest       a prompt, a sampling setting, a conversation: this request cannot run as it stands
    │   └── PromptTooLong    prompt and answer do not fit the context or the KV pool
    ├── InvalidOption        an option of the engine, of a command or of a method
    ├── CheckpointError      a model folder that cannot be read, understood or trusted
    │   ├── ModelNotFound
    │   └── UnsupportedModel
    └── CapacityError        the machine cannot hold what was asked

A message is one sentence that says what is wrong, what was got, what is allowed and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HastenError(Exception):
    """Base of all errors meant for the user; ``str(error)`` is one clear sentence."""

    def __init__(self, what: str, *, got: object = None, allowed: object = None, remedy: str | None = None) -> None:
        self.what, self.got, self.allowed, self.remedy = what, got, allowed, remedy
        details = [f"got {got}"] if got is not None else []
        details += [f"allowed: {allowed}"] if allowed is not None else []
        message = what if not details else f"{what}: {'; '.join(details)}"
        super().__init__(f"{message}. {remedy}." if remedy else f"{message}.")

    def fields(self) -> dict[str, str | None]:
        """The parts of the message after ``what`` as plain data, to make it again on the other side of a boundary."""
        parts = {"got": self.got, "allowed": self.allowed, "remedy": self.remedy}
        return {name: None if part is None else str(part) for name, part in parts.items()}


class InvalidRequest(HastenError):
    """This request cannot run as it stands; other requests are not affected."""


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt with the tokens asked for, exceeds the context or the KV pool. Nothing was cut."""


class InvalidOption(HastenError):
    """An option that does not exist or has a value out of range."""


class CheckpointError(HastenError):
    """A model folder that cannot be read, understood or trusted."""


class ModelNotFound(CheckpointError):
    """No such folder, and no such model in the local cache or on the hub."""


class UnsupportedModel(CheckpointError):
    """A sound checkpoint of a kind that hasten does not decode."""


class CapacityError(HastenError):
    """The machine cannot hold what was asked; the message names both numbers."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}" if close else f"Choose one of {', '.join(known)}"
