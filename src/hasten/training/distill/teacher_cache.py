"""``TeacherCache``: a teacher's top-k log-probabilities and hidden states for fixed sequences.

::

    DIR/cache.json               what was cached, and the parts (``CacheFacts``)
        sequences.safetensors    the token ids, with their split into training and validation
        part-000000000.safetensors, ...
            token_ids  [position, token] uint16 or int32     the k most likely tokens, best first
            log_probs  [position, class] float16             theirs, and that of all other tokens together (if k < vocabulary)
            hidden.L   [position, hidden] bfloat16           the output of layer L, from 0

Positions are those whose next token is predicted, sequence after sequence. Parts are memory-mapped, so only the positions of a
batch are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hasten.checkpoints.shards import HeaderError, read_header
from hasten.training.corpus import NumberedSource
from hasten.training.distill.cache_facts import SEQUENCES, CacheFacts, damaged, hidden_name
from hasten.training.distill.sequences import restore_sequences, sequences_digest

MAX_MASS_ERROR = 0.02  # of a distribution stored in float16; a larger one is damage


@dataclass(frozen=True, slots=True)
class CachedRows:
    """R positions of a batch."""

    token_ids_RK: Tensor  # int64
    log_probs_RC: Tensor  # float32
    hidden_states: dict[int, Tensor]  # layer (from 0) -> [R, E] float32

    def to(self, device: torch.device) -> CachedRows:
        """Return the same numbers on a device."""
        hidden = {layer: hidden_RE.to(device) for layer, hidden_RE in self.hidden_states.items()}
        return CachedRows(self.token_ids_RK.to(device), self.log_probs_RC.to(device), hidden)


@dataclass(frozen=True, slots=True)
class TeacherCache:
    folder: Path
    facts: CacheFacts
    source: NumberedSource
    starts: tuple[int, ...]  # of each sequence: positions of all sequences before it
    _mapped: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)  # number of a part -> its tensors

    @classmethod
    def open(cls, folder: Path) -> TeacherCache:
        """Read and check all but the numbers, which are checked when they are read.

        Raises ``CheckpointError``.
        """
        facts = CacheFacts.read(folder)
        source = _read_sequences(folder, facts)
        counts = source.predicted_counts_N
        starts = (0, *counts.cumsum(0).tolist())
        if facts.parts[-1].stop != len(counts):
            raise damaged(folder, f"{facts.parts[-1].stop} sequences of {len(counts)}")
        for part in facts.parts:
            if part.positions != starts[part.stop] - starts[part.first]:
                raise damaged(folder, f"{part.name} has {part.positions} positions")
            try:
                entries = read_header(folder / f"{part.name}.safetensors")
            except HeaderError as error:
                raise damaged(folder, str(error)) from None
            if {entry.name: (entry.dtype, entry.shape) for entry in entries} != facts.tensors(part.positions):
                raise damaged(folder, f"{part.name} has other tensors than {facts.position_bytes} bytes per position")
        return cls(folder, facts, source, starts)

    def rows(self, indices: Sequence[int], layers: Collection[int]) -> CachedRows:
        """Return the positions of these sequences, and hidden states of ``layers``.

        Raises ``CheckpointError`` for damage.
        """
        pieces = [self._slices(index) for index in indices]
        ids_RK = torch.cat([piece["token_ids"].long() for piece in pieces])
        log_probs_RC = torch.cat([piece["log_probs"].float() for piece in pieces])
        hidden = {layer: torch.cat([piece[hidden_name(layer)].float() for piece in pieces]) for layer in layers}
        mass_R = log_probs_RC.exp().sum(-1)
        is_valid_RC = log_probs_RC.isfinite() & (log_probs_RC <= 0)
        if not bool((is_valid_RC.all(-1) & ((mass_R - 1).abs() < MAX_MASS_ERROR)).all()):
            raise damaged(self.folder, "numbers that are no log-probabilities")
        if int(ids_RK.min()) < 0 or int(ids_RK.max()) >= self.facts.vocab_size:
            raise damaged(self.folder, "a token id outside the vocabulary")
        if not all(bool(hidden_RE.isfinite().all()) for hidden_RE in hidden.values()):
            raise damaged(self.folder, "hidden states that are not finite")
        # Rounding to float16 left sums that are not exactly 1.
        return CachedRows(ids_RK, log_probs_RC.log_softmax(-1), hidden)

    def _slices(self, index: int) -> dict[str, Tensor]:
        """Return the mapped tensors of one sequence."""
        number = bisect_right(self.facts.parts, index, key=lambda part: part.first) - 1
        if number not in self._mapped:
            self._mapped[number] = self._map(self.folder / f"{self.facts.parts[number].name}.safetensors")
        origin = self.starts[self.facts.parts[number].first]
        begin, end = self.starts[index] - origin, self.starts[index + 1] - origin
        return {name: tensor[begin:end] for name, tensor in self._mapped[number].items()}

    def _map(self, file: Path) -> dict[str, Tensor]:
        try:
            with safe_open(file, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (it is no mapping)
        except (SafetensorError, OSError) as error:
            raise damaged(self.folder, f"{file.name}: {error}") from None


def _read_sequences(folder: Path, facts: CacheFacts) -> NumberedSource:
    try:
        read_header(folder / SEQUENCES)
        source = restore_sequences(facts.kind, load_file(folder / SEQUENCES), facts.seq_len, facts.vocab_size)
        if sequences_digest(source) != facts.sequences_sha256:
            raise ValueError("it has another checksum")
    except (HeaderError, SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(folder, f"{SEQUENCES}: {error}") from None
    return source
