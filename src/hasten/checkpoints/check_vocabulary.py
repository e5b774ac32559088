"""Whether a tokenizer and a checkpoint belong together."""

from __future__ import annotations

from hasten.core.errors import CheckpointError


def check_vocabulary(tokenizer_size: int, embedding_size: int) -> None:
    """Raises ``CheckpointError`` when the tokenizer can give ids that have no embedding row.

    ``tokenizer_size`` is its largest id plus one. A larger embedding is usual: rows are padded to a round number.
    """
    if tokenizer_size > embedding_size:
        raise CheckpointError(
            "the tokenizer has more tokens than the model has embedding rows",
            got=f"{tokenizer_size:,} tokens and {embedding_size:,} rows",
            allowed=f"up to {embedding_size:,} tokens",
            remedy="Use the tokenizer that came with this checkpoint",
        )
