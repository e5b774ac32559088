"""Names of models that the server does not have."""

from __future__ import annotations

from hasten.serving.models.single import unknown_model


def test_a_long_name_is_cut() -> None:
    message = unknown_model("x" * 1_000_000, ["demo"]).message
    assert len(message) < 500
    assert "'demo'" in message
