"""``sign_thought``: the signature of a thought.

It tells clients that the thought came from this process. It is not checked when it comes back, because a restarted server has
another key and must not refuse earlier conversations.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_KEY = secrets.token_bytes(32)


def sign_thought(thought: str) -> str:
    """Return the HMAC-SHA-256 of a thought in Base64."""
    return base64.b64encode(hmac.digest(_KEY, thought.encode("utf-8", "surrogatepass"), hashlib.sha256)).decode("ascii")
