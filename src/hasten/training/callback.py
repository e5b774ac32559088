"""``TrainingCallback``: who is told how a training goes. ``Display``: lines on standard error, and a bar where someone looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from hasten.training.draft_score import DraftScore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class TrainingCallback(Protocol):
    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def moved(self, step: int, total: int, loss: float) -> None:
        """``step`` updates of ``total`` are made; ``loss`` was that of the last batch."""
        ...

    def evaluated(self, step: int, total: int, loss: float, score: DraftScore) -> None:
        """Held-out text was read; ``loss`` is the mean over the batches trained on since the last time."""
        ...


class Silent:
    def note(self, text: str) -> None:
        pass

    def moved(self, step: int, total: int, loss: float) -> None:
        pass

    def evaluated(self, step: int, total: int, loss: float, score: DraftScore) -> None:
        pass


class Display:
    """Made by ``display``."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def moved(self, step: int, total: int, loss: float) -> None:
        if self._task is None:
            self._task = self._bar.add_task("training", total=total, completed=step, loss=loss)
        self._bar.update(self._task, completed=step, loss=loss)

    def evaluated(self, step: int, total: int, loss: float, score: DraftScore) -> None:
        self.note(line(step, total, loss, score))


@contextmanager
def display() -> Iterator[Display]:
    """Bars only on a terminal, lines always."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, loss, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Display(console, bar)


def line(step: int, total: int, loss: float, score: DraftScore) -> str:
    """``step 200 of 1000: loss 2.310, held out 2.451, accepted 41.2% 23.0% 12.1% (0.71 tokens)``; exits ``agreed 41.2% 62.5%``."""
    depths = " ".join(f"{share:.1%}" for share in score.acceptance)
    figures = f"agreed {depths}" if score.exits else f"accepted {depths} ({score.accepted_length:.2f} tokens)"
    return f"step {step} of {total}: loss {loss:.3f}, held out {score.mean_loss:.3f}, {figures}"
