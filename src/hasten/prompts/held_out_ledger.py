"""``HeldOutLedger``: how many optimisations have read the same held-out items.

The best of many runs on the same held-out items is flattered by them, as a choice on validation items is. The ledger is a folder in
hasten's cache folder with one folder per set of inputs, and one empty file per run in it, so that processes need no lock::

    prompt-held-out/9f2c.../5d41...
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from hasten.core.cache_folder import cache_folder
from hasten.core.errors import HastenError
from hasten.prompts.metric import text_digest
from hasten.prompts.task import PromptItem

FOLDER = "prompt-held-out"


class HeldOutLedger:
    """Raises ``HastenError`` if the cache folder cannot be made."""

    def __init__(self) -> None:
        self._folder = cache_folder() / FOLDER

    def record(self, items: Iterable[PromptItem], run_id: str) -> int:
        """Record that a run has read the items, and return the number of other runs that did.

        The order of the items does not matter. Idempotent. Raises ``HastenError``.
        """
        folder = self._folder / text_digest("hasten/held-out/1", *sorted(item.input_key for item in items))[:32]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / run_id).touch(mode=0o600)
            return sum(name != run_id for name in os.listdir(folder))
        except OSError as error:
            raise HastenError(
                f"{folder} cannot be written", got=error.strerror, remedy="Set HASTEN_CACHE to another folder"
            ) from None
