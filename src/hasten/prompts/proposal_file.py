"""``ProposalFile``: the answers of a proposer, so that a run that goes on asks nothing twice.

A sampled endpoint would answer differently the second time, and the search would begin anew. The lines, after one for the format::

    {"key": "9f2c...", "texts": ["Name the capital."], "num_tokens": 93}
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.core.unicode_text import is_unicode
from hasten.prompts.journal import Journal
from hasten.prompts.metric import text_digest
from hasten.prompts.proposer import Proposals, Proposer

_HEADER = b'{"hasten_prompt_proposals": 1}\n'


class ProposalFile:
    """Proposals by key. Raises ``InvalidOption`` for a file that is not one, or that another process uses."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, _HEADER, "proposals", _proposals)
        self._proposals = dict(self._journal.entries)

    def __enter__(self) -> ProposalFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.close()

    def propose(self, proposer: Proposer, prompt: str, count: int, seed: int) -> Proposals:
        """Return the proposer's answers; those that are kept are not asked for.

        Raises ``HastenError``, also if the disk is full.
        """
        parts: list[Proposals] = []
        for start in range(0, count, proposer.max_count):
            num, part_seed = min(proposer.max_count, count - start), seed + start
            key = text_digest("hasten/proposals/1", proposer.identity, prompt, str(num), str(part_seed))
            found = self._proposals.get(key)
            if found is None:
                found = proposer.propose(prompt, num, part_seed)
                self._journal.add({"key": key, "texts": list(found.texts), "num_tokens": found.num_tokens})
                self._proposals[key] = found
            parts.append(found)
        texts = tuple(text for part in parts for text in part.texts)
        return Proposals(texts, sum(part.num_tokens for part in parts))


def _proposals(record: dict[str, Any]) -> tuple[str, Proposals]:
    """Return the key and the proposals of a line. Raises ``ValueError``, ``TypeError`` or ``KeyError``."""
    key, texts, num_tokens = record["key"], record["texts"], record["num_tokens"]
    if not (isinstance(key, str) and isinstance(texts, list) and all(map(is_unicode, texts))):
        raise ValueError
    if type(num_tokens) is not int or not 0 <= num_tokens < 2**53:
        raise ValueError
    return key, Proposals(tuple(texts), num_tokens)
