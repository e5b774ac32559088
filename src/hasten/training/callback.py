"""``TrainingCallback``: progress reports of a training. ``ConsoleCallback`` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hasten.training.score import Score

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class TrainingCallback:
    """Every method does nothing; a subclass overrides what it reports."""

    def on_log(self, message: str) -> None:
        """Report one line of text."""

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        """Report ``step`` finished updates. ``loss`` is that of the last batch."""

    def on_evaluate(self, step: int, total_steps: int, loss: float, score: Score) -> None:
        """Report a validation score. ``loss`` is the mean training loss since the last evaluation."""


class ConsoleCallback(TrainingCallback):
    """Prints lines and a progress bar to standard error."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._bar_task: TaskID | None = None

    def on_log(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        if self._bar_task is None:
            self._bar_task = self._bar.add_task("training", total=total_steps, completed=step, loss=loss)
        self._bar.update(self._bar_task, completed=step, loss=loss)

    def on_evaluate(self, step: int, total_steps: int, loss: float, score: Score) -> None:
        self.on_log(evaluation_line(step, total_steps, loss, score))


@contextmanager
def console_callback() -> Iterator[ConsoleCallback]:
    """Yield a callback. Its progress bar needs a terminal and ends with the context."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, loss, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield ConsoleCallback(console, bar)


def evaluation_line(step: int, total_steps: int, loss: float, score: Score) -> str:
    """Return a line such as ``step 2 of 9: loss 2.310, validation 2.451, accepted 41.2% (0.41 tokens)``."""
    figures = [f"loss {loss:.3f}", f"validation {score.mean_loss:.3f}", *filter(None, [score.describe()])]
    return f"step {step} of {total_steps}: {', '.join(figures)}"
