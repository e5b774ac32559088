"""Rewards of reinforcement learning: how good an output to an input is.

- ``compiles``: 1 if input and output together are Python source, else 0.
- ``FILE.py`` or ``FILE.py:NAME``: the function ``reward(input, output) -> float``, or ``NAME``, of the user's file.
- a folder: the score of a reward model, as ``hasten train reward-model`` writes one.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hasten.core.errors import InvalidOption, nearest, show
from hasten.quality.documents import read_text_file
from hasten.quality.function_process import FunctionFailed, FunctionProcess
from hasten.training.preference.reward_model import RewardModel

COMPILES = "compiles"
DEFAULT_FUNCTION = "reward"
MAX_REWARD_BYTES = 2 << 30  # memory of the process of a user's function
TOTAL_SECONDS = 1e9  # of all calls: a training has many
MAX_SOURCE = 1 << 20  # characters that are parsed


class Reward(Protocol):
    @property
    def identity(self) -> str:
        """What the rewards depend on: a name, or a hash of the files."""
        ...

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return a finite reward for each input with its output. Raises ``HastenError``."""
        ...

    def close(self) -> None: ...


def find_reward(name: str) -> Reward:
    """Return the reward that a name, a file or a folder means. Raises ``HastenError``."""
    file, _, function = name.partition(".py:")
    if name == COMPILES:
        return Compiles()
    if name.endswith(".py"):
        return FunctionReward(Path(name), DEFAULT_FUNCTION)
    if function.isidentifier():
        return FunctionReward(Path(f"{file}.py"), function)
    if name and Path(name).is_dir():
        return ModelReward(Path(name))
    raise InvalidOption(
        "there is no such reward",
        got=show(name),
        allowed=f"{COMPILES}, FILE.py:NAME or the folder of a reward model",
        remedy=nearest(name, [COMPILES]),
    )


class Compiles:
    identity = COMPILES

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        return [float(compiles(given + output)) for given, output in texts]

    def close(self) -> None:
        """Do nothing."""


def compiles(source: str) -> bool:
    """Return whether a text is Python source. It is parsed and not run."""
    if len(source) > MAX_SOURCE:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubtful escapes and comparisons
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: too deeply nested
        return False
    return True


class FunctionReward:
    """A function of the user's file, in a process of its own with limits of time and memory."""

    def __init__(self, file: Path, name: str, process: FunctionProcess | None = None) -> None:
        self._label = f"{file}:{name}"
        self.identity = hashlib.sha256(f"{name}\n{read_text_file(file)}".encode()).hexdigest()
        self._process = process or FunctionProcess(file, name, total=TOTAL_SECONDS, max_bytes=MAX_REWARD_BYTES)

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return the score of each output.

        Raises ``FunctionFailed`` if the function raises or hangs, and ``InvalidOption`` if the file cannot be imported.
        """
        try:
            return [self._process.call(given, output) for given, output in texts]
        except FunctionFailed as error:
            raise FunctionFailed(
                f"the reward {self._label} failed, because {error.what}",
                got=error.got,
                allowed=error.allowed or "a finite number",
                remedy="Correct the function; it is called with input and output",
            ) from None

    def close(self) -> None:
        self._process.close()


class ModelReward:
    """The score of a reward model."""

    def __init__(self, folder: Path) -> None:
        self._model = RewardModel.load(folder)
        self._tokenizer = self._model.tokenizer()
        self.identity = self._model.digest()

    def scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        return self._model.scores(self._tokenizer, texts)

    def close(self) -> None:
        """Do nothing."""
