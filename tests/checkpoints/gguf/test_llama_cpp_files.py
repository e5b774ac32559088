"""Files that llama.cpp wrote decode to the bits of llama.cpp and of the ``gguf`` package. The README says how they were made."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants

from hasten.checkpoints.gguf.blocks import BLOCK_FORMATS
from hasten.checkpoints.gguf.container import GgufFile
from hasten.checkpoints.gguf.mapped_files import MappedFiles
from hasten.checkpoints.gguf.matrix import GgufMatrix
from hasten.checkpoints.reader import Checkpoint
from hasten.models.family import find_family

FOLDER = Path(__file__).parent
DIGESTS = {  # of the float32 weights of all quantised matrices, in the order of the file
    "llama-q4_k_m": "2a7761e582e8377bd05f288d4a214ee2fc1c1d5468aec6b870edbcedf3e9a768",
    "qwen3-q5_k_m": "98fed5673ceb04ddbd04388df72c140f61f17f4780af14e0ff8446a7c1e7d41f",
}
TYPES = {
    "llama-q4_k_m": {"Q4_K": 5, "Q6_K": 3, "Q5_0": 1, "F32": 3},
    "qwen3-q5_k_m": {"Q5_K": 5, "Q6_K": 3, "Q5_1": 1, "F32": 5},
}


@pytest.mark.parametrize("name", DIGESTS)
def test_stored_rows_have_the_bits_of_llama_cpp(name: str) -> None:
    file, digest = GgufFile.open(FOLDER / f"{name}.gguf"), hashlib.sha256()
    files, theirs = MappedFiles(file.sizes), {tensor.name: tensor for tensor in GGUFReader(FOLDER / f"{name}.gguf").tensors}
    assert list(file.tensors) == list(theirs)
    for tensor in file.tensors.values():
        if tensor.type.name in BLOCK_FORMATS:
            shape = (tensor.shape[0], tensor.shape[1])
            weights = GgufMatrix(tensor.name, shape, tensor, files).rows(0, shape[0]).dequantize().numpy()
            assert np.array_equal(weights, quants.dequantize(theirs[tensor.name].data, theirs[tensor.name].tensor_type))
            digest.update(weights.tobytes())
    assert digest.hexdigest() == DIGESTS[name]
    assert Counter(tensor.type.name for tensor in file.tensors.values()) == TYPES[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_files_are_whole_models(name: str) -> None:
    checkpoint = Checkpoint.open(FOLDER / f"{name}.gguf")
    family = find_family(checkpoint.config)
    names = {source.name for source in family.weights(family.spec(checkpoint.config))}
    assert names == checkpoint.tensors.keys() | checkpoint.matrices.keys()
