"""``HeldOutLedger``: runs are counted once, by the inputs of the held-out items."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.core.errors import HastenError
from hasten.prompts.held_out_ledger import FOLDER, HeldOutLedger
from hasten.prompts.task import PromptItem


def items(*texts: str) -> list[PromptItem]:
    return [PromptItem(line, {"input": text}, ("answer",)) for line, text in enumerate(texts, 1)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_other_runs_on_the_same_items_are_counted() -> None:
    same = items("a", "b")
    assert [HeldOutLedger().record(same, run) for run in ("1", "2", "2", "3", "1")] == [0, 1, 1, 2, 2]


def test_only_the_inputs_tell_items_apart() -> None:
    HeldOutLedger().record(items("a", "b"), "1")
    other = [PromptItem(9, {"input": "b"}, ("other",)), PromptItem(7, {"input": "a"}, ("answer",))]
    assert HeldOutLedger().record(other, "2") == 1
    for different in (items("a"), items("a", "c"), items("ab"), items("a", "b", "c")):
        assert HeldOutLedger().record(different, "3") == 0
    assert HeldOutLedger().record([PromptItem(1, {"question": "a"}, ("b",))], "3") == 0


def test_a_folder_that_cannot_be_written_is_one_sentence(cache: Path) -> None:
    ledger = HeldOutLedger()
    (cache / FOLDER).write_text("in the way")
    with pytest.raises(HastenError, match=f"{FOLDER}.* cannot be written"):
        ledger.record(items("a"), "1")
