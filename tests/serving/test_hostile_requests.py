"""Hostile requests to a served model: each is refused by the name of its fault, or answered; and the next request is served.

The server, its engine's process and the answers of others are the same after each.
"""

from __future__ import annotations

import pytest
from tests.serving import hostile_bodies, hostile_texts
from tests.serving.watched_server import WatchedServer, check_error_form

ALL = {
    f"{group}-{name}": hostile
    for group, named in {
        "counts": hostile_bodies.COUNTS,
        "tokens": hostile_bodies.TOKENS,
        "forms": hostile_bodies.FORMS,
        "json": hostile_texts.JSON,
        "kinds": hostile_texts.KINDS,
        "texts": hostile_texts.TEXTS,
        "messages": hostile_texts.MESSAGES,
        "templates": hostile_texts.TEMPLATES,
        "names": hostile_texts.NAMES,
    }.items()
    for name, hostile in named.items()
}


@pytest.mark.parametrize("name", ALL)
def test_a_hostile_body(watched: WatchedServer, name: str) -> None:
    hostile = ALL[name]
    with watched.unharmed(name):
        answer = watched.client.post(hostile.path, content=hostile.body, headers={"content-type": "application/json"})
    if hostile.named:
        assert 400 <= answer.status_code < 500, answer.text
        check_error_form(hostile.path, answer.json())
        assert hostile.named in answer.text
        assert len(answer.content) < 4096
    else:
        assert answer.status_code == 200, answer.text
        assert b'"error"' not in answer.content
