"""Server-sent events of OpenAI's surface.

Each has one JSON object; ``[DONE]`` follows a stream that has succeeded.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from hasten.serving.api_error import ErrorKind, as_api_error
from hasten.serving.event_json import event_json
from hasten.serving.log_failure import log_failure
from hasten.serving.openai.errors import write_error

log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> bytes:
    """Return the event of a chunk."""
    return f"data: {event_json(chunk)}\n\n".encode()


async def with_end(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield events, and then ``[DONE]``, or the error that ended them.

    An exception before the first event is raised, so that it becomes a status.
    """
    has_begun = False
    try:
        async for each in events:
            yield each
            has_begun = True
        yield DONE
    except Exception as error:
        if not has_begun:
            raise
        found = as_api_error(error)
        if found.kind is ErrorKind.INTERNAL and found is not error:
            log_failure(log, error)
        yield event(write_error(found, ""))
    finally:
        await events.aclose()
