"""``zero_biases``: biases in a checkpoint that its model does not have.

AutoGPTQ gives every module that it quantises a bias, which is zero where the model has none.
"""

from __future__ import annotations

from collections.abc import Collection

from hasten.checkpoints.reader import FLOAT_DTYPES, Checkpoint, ExpectedTensor
from hasten.checkpoints.shards import list_faults
from hasten.core.errors import CheckpointError


def zero_biases(checkpoint: Checkpoint, expected: Collection[str]) -> dict[str, ExpectedTensor]:
    """Return the biases outside ``expected`` of quantised modules. They are read: all are zero.

    Raises ``CheckpointError`` that lists those that are not.
    """
    found: dict[str, ExpectedTensor] = {}
    faults = []
    for name, entry in checkpoint.tensors.items():
        module, _, part = name.rpartition(".")
        matrix = checkpoint.matrices.get(f"{module}.weight")
        if part != "bias" or name in expected or matrix is None:
            continue
        if entry.shape != matrix.shape[:1] or entry.dtype not in FLOAT_DTYPES:
            continue  # an unexpected tensor like any other
        if checkpoint.read(name).count_nonzero():
            faults.append(f"{name} {list(entry.shape)}")
        found[name] = entry.shape, (entry.dtype,)
    if faults:
        raise CheckpointError(
            f"{checkpoint.folder} has biases that are not zero, and its configuration describes a model without them: "
            f"{list_faults(faults)}",
            remedy=checkpoint.mismatch_remedy,
        )
    return found
