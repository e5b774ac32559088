"""Parts of a tokenizer that reads and writes texts as SentencePiece does.

SentencePiece: Kudo and Richardson, 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, decoders, processors
from tokenizers.processors import PostProcessor

SPACE = "▁"


MAX_PIECE_LENGTH = 256  # characters; SentencePiece's default is 16
MAX_MERGES = 2**21  # Gemma's 256,000 pieces have a quarter of that


def merges(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges that lead to the pieces, the piece of the best score first.

    ``pieces``: scores by piece. The order of the mapping decides between equal scores. Raises ``ValueError`` for pieces so long or
    so alike that time or memory would grow without bound.
    """
    longest = max(map(len, pieces), default=0)
    if longest > MAX_PIECE_LENGTH:
        raise ValueError(f"it has a piece of {longest:,} characters, and {MAX_PIECE_LENGTH} are allowed")
    found = []
    for piece in sorted(pieces, key=lambda piece: -pieces[piece]):
        for end in range(1, len(piece)):  # all splits of a piece lead to it
            if piece[:end] in pieces and piece[end:] in pieces:
                found.append((piece[:end], piece[end:]))
        if len(found) > MAX_MERGES:
            raise ValueError(f"its pieces are made of each other in more than {MAX_MERGES:,} ways")
    return found


def decoder(*, strip_prefix: bool) -> decoders.Decoder:
    """Return the decoder from tokens to text.

    With ``strip_prefix`` it removes the space that encoding put before the text.
    """
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip_prefix else parts)


def first_and_last(tokenizer: Tokenizer, first: str | None, last: str | None) -> PostProcessor | None:
    """Return the post-processor that puts the token ``first`` before each text and ``last`` after it.

    None adds none, and neither does a text that is no token.
    """
    added = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token is not None]
    added = [(token, token_id) for token, token_id in added if token_id is not None]
    if not added:
        return None
    before, after = ([token] if token in dict(added) else [] for token in (first, last))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", *before, "$B:1", *after], special_tokens=added
    )
