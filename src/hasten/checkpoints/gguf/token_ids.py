"""``names_no_token``: whether the metadata of a GGUF file says that there is no such token."""

from __future__ import annotations


def names_no_token(token_id: object) -> bool:
    """Whether the value of a key such as ``eos_token_id`` is missing or -1.

    Some writers store -1 without its sign.
    """
    return token_id is None or (type(token_id) is int and token_id in (-1, 2**32 - 1))
