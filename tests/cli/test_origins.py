"""Colours and counts of tokens by origin and by exit layer."""

from __future__ import annotations

import re

from hasten.cli.origins import TokenPainter
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


def test_tokens_are_coloured_and_counted_by_exit_layer(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    painter = TokenPainter(None)
    painted = painter.paint(delta((5, 6, 7), (12, 1, 12))) + painter.paint(delta((8,), (24,)))
    assert re.sub(r"\x1b\[\d+m", "", painted) == "5 6 7 8 "
    assert [token for _, token in re.findall(r"\x1b\[(\d+)m(\d+) \x1b", painted)] == ["5", "6", "7", "8"]
    first, second, third, _ = [color for color, _ in re.findall(r"\x1b\[(\d+)m(\d+) \x1b", painted)]
    assert first == third != second
    plain = re.sub(r"\x1b\[\d+m", "", painter.legend())
    assert plain == "1 after 1 layer | 2 after 12 layers | 1 after 24 layers"


def test_without_early_exits_the_legend_counts_origins(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    painter = TokenPainter(None)
    assert painter.paint(delta((5, 6))) == "5 6 "
    assert painter.legend() == "0 accepted | 0 corrected | 0 bonus | 2 not drafted"


def test_a_draft_has_accepted_corrected_and_bonus_tokens(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    painter = TokenPainter(None)
    origins = (TokenOrigin.DRAFT, TokenOrigin.BONUS, TokenOrigin.DRAFT, TokenOrigin.CORRECTION, TokenOrigin.STEP)
    text = painter.paint(Delta(request_id="r", index=0, text="", token_ids=(1, 2, 3, 4, 5), origins=origins))
    assert text == "\x1b[32m1 \x1b[0m\x1b[36m2 \x1b[0m\x1b[32m3 \x1b[0m\x1b[33m4 \x1b[0m5 "
    assert re.sub(r"\x1b\[\d+m", "", painter.legend()) == "2 accepted | 1 corrected | 1 bonus | 1 not drafted"
