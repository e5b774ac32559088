"""``RewardModel``: a decoder whose last hidden state is mapped to a score.

::

    DIR/config.json          as transformers' ...ForSequenceClassification with one label
    DIR/model.safetensors    the decoder, and score.weight [1, E]

Shape suffixes: B sequences · S tokens per sequence · E hidden size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.checkpoints.json_values import is_integer
from hasten.checkpoints.reader import Checkpoint
from hasten.checkpoints.side_files import copy_side_files
from hasten.core.errors import CheckpointError, InvalidOption
from hasten.models.family import find_family
from hasten.models.load import plan_decoder
from hasten.models.save import write_decoder
from hasten.ops.torch.backend import TorchOps
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch
from hasten.training.examples import Example, Examples, output_tokens
from hasten.training.target_model import stored_dtype
from hasten.training.trainable_model import TrainableModel

SCORE = "score.weight"
BATCH = 16  # sequences that are scored at a time


@dataclass(frozen=True, slots=True)
class RewardModel:
    backbone: TrainableModel
    score_1E: nn.Parameter
    folder: Path  # with the tokenizer

    @classmethod
    def new(cls, folder: Path) -> RewardModel:
        """Return a model whose scores are all 0, on the decoder of a checkpoint. Raises ``CheckpointError``."""
        backbone = TrainableModel.load(folder)
        return cls(backbone, nn.Parameter(torch.zeros(1, backbone.spec.hidden_size, device="cpu")), folder)

    @classmethod
    def load(cls, folder: Path) -> RewardModel:
        """Load what ``write`` wrote. Raises ``CheckpointError`` for another checkpoint."""
        checkpoint = Checkpoint.open(folder)
        if SCORE not in checkpoint.tensors:
            raise CheckpointError(f"{folder} is no reward model: it has no {SCORE}", remedy="Train one: hasten train reward-model")
        without = {name: entry for name, entry in checkpoint.tensors.items() if name != SCORE}
        ops = TorchOps()
        loaded = plan_decoder(dataclasses.replace(checkpoint, tensors=without), dtype="float32", ops=ops).load()
        shape, expected = tuple(checkpoint.tensors[SCORE].shape), (1, loaded.spec.hidden_size)
        if shape != expected:
            raise CheckpointError(f"{SCORE} in {folder} has the wrong shape", got=list(shape), allowed=str(list(expected)))
        backbone = TrainableModel(loaded.decoder.requires_grad_(True), ops, loaded.config, stored_dtype(loaded.config))
        return cls(backbone, nn.Parameter(checkpoint.read(SCORE).float()), folder)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return all parameters that change a score; those of an lm_head of its own do not."""
        named = dict(self.backbone.decoder.named_parameters())
        return {name: value for name, value in named.items() if not name.startswith("lm_head.")} | {"score": self.score_1E}

    def rewards(self, batch: Batch) -> Tensor:
        """Return the score of each sequence, float32 [B]: that of its last token but padding."""
        assert batch.is_output_BS is not None
        num_sequences, length = batch.ids_BS.shape
        states_TE = self.backbone.normed(self.backbone.hidden_states(batch.ids_BS))
        positions_S = torch.arange(length, device=batch.ids_BS.device)
        ends_B = (batch.is_output_BS * positions_S).amax(1)
        counts_BS = (batch.ids_BS != self._pad_id) & (positions_S <= ends_B[:, None])
        last_B = (counts_BS * positions_S).amax(1)
        rows_B = torch.arange(num_sequences, device=batch.ids_BS.device) * length + last_B
        return (states_TE[rows_B] @ self.score_1E.T)[:, 0].float()

    @torch.no_grad()
    def scores(self, tokenizer: TextTokenizer, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return the score of each input with its output.

        Raises ``InvalidOption`` for a text beyond the model's context.
        """
        examples = []
        for given, output in texts:
            ids = tokenizer.encode(given)
            examples.append(Example([*ids, *(output_tokens(tokenizer, output) or ids[-1:])], len(ids)))
        if (longest := max(len(example.ids) for example in examples)) > self.backbone.spec.max_positions:
            allowed = f"up to {self.backbone.spec.max_positions} tokens"
            raise InvalidOption("a text exceeds the context of the reward model", got=f"{longest} tokens", allowed=allowed)
        joined = Examples.join(examples, [])
        rows = [range(first, min(first + BATCH, len(examples))) for first in range(0, len(examples), BATCH)]
        return [float(score) for indices in rows for score in self.rewards(joined.select(indices, 0))]

    def tokenizer(self) -> TextTokenizer:
        """Return its tokenizer. Raises ``CheckpointError`` if there is none."""
        tokenizer = TextTokenizer.load(self.folder, self.backbone.spec.vocab_size)
        if tokenizer is None:
            raise CheckpointError(f"the reward model {self.folder} has no tokenizer", remedy="Copy one into its folder")
        return tokenizer

    def digest(self) -> str:
        """Return the SHA-256 of its files, in hexadecimal."""
        digest = hashlib.sha256()
        for file in sorted([*self.folder.glob("*.json"), *self.folder.glob("*.safetensors")]):
            with file.open("rb") as stream:
                digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write a checkpoint that transformers loads as a sequence classifier with one label.

        Raises ``CheckpointError`` for weights that are not finite, and ``OSError``.
        """
        for name, parameter in self.parameters().items():
            if not bool(parameter.isfinite().all()):
                raise CheckpointError(f"the trained weights {name} are not finite", remedy="Train with a smaller learning rate")
        backbone = self.backbone
        extra = {SCORE: self.score_1E}
        write_decoder(folder, backbone.decoder, find_family(backbone.config), self._config(), backbone.dtype, extra)
        copy_side_files(self.folder, folder)

    @property
    def _pad_id(self) -> int:
        """Return the padding token: where possible one that never ends a text."""
        ids = [self.backbone.config.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
        ends = ids[2] if isinstance(ids[2], list) else [ids[2]]
        found = next((token for token in ids[:2] if is_integer(token, 0) and token not in ends), ends[0])
        return found if isinstance(found, int) else 0

    def _config(self) -> dict[str, Any]:
        names = self.backbone.config.get("architectures")
        name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else "ForCausalLM"
        return {
            **self.backbone.config,
            "architectures": [re.sub(r"(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", name)],
            "num_labels": 1,
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "pad_token_id": self._pad_id,
        }
