"""Colours and counts of tokens that left early."""

from __future__ import annotations

import re

from hasten.cli.origins import Painter
from hasten.core.output import Delta
from hasten.core.result import TokenOrigin


def delta(token_ids: tuple[int, ...], exit_layers: tuple[int, ...] = ()) -> Delta:
    return Delta(
        request_id="r",
        index=0,
        text="",
        token_ids=token_ids,
        origins=(TokenOrigin.STEP,) * len(token_ids),
        exit_layers=exit_layers,
    )


def test_tokens_are_painted_and_counted_by_the_layer_that_they_left_after(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    painter = Painter(None)
    painted = painter.paint(delta((5, 6, 7), (12, 1, 12))) + painter.paint(delta((8,), (24,)))
    assert re.sub(r"\x1b\[\d+m", "", painted) == "5 6 7 8 "
    assert [token for _, token in re.findall(r"\x1b\[(\d+)m(\d+) \x1b", painted)] == ["5", "6", "7", "8"]
    first, second, third, _ = [color for color, _ in re.findall(r"\x1b\[(\d+)m(\d+) \x1b", painted)]
    assert first == third != second
    plain = re.sub(r"\x1b\[\d+m", "", painter.legend())
    assert plain == "1 after 1 layer | 2 after 12 layers | 1 after 24 layers"


def test_without_exits_the_legend_tells_how_tokens_came(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    painter = Painter(None)
    assert painter.paint(delta((5, 6))) == "5 6 "
    assert painter.legend() == "0 guessed and accepted | 0 corrected | 0 after an accepted guess | 2 not guessed"
