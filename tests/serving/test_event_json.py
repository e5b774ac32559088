"""Data of events is one line, whatever a model writes."""

from __future__ import annotations

import json
import sys

import pytest

from hasten.serving.event_json import event_json


def test_no_character_ends_a_line() -> None:
    endings = [chr(code) for code in range(sys.maxunicode + 1) if len(f"a{chr(code)}b".splitlines()) > 1]
    assert "\u2028" in endings
    for ending in endings:
        text = event_json({"text": f"a{ending}data: é"})
        assert len(text.splitlines()) == 1 and json.loads(text) == {"text": f"a{ending}data: é"}


def test_other_text_is_written_as_it_is() -> None:
    assert event_json({"text": "é中😀", "n": [1, None]}) == '{"text":"é中😀","n":[1,null]}'
    with pytest.raises(ValueError, match="JSON"):
        event_json(float("nan"))
