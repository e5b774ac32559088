"""``TemplateProcess``: templates rendered within limits, in a process that can be killed.

A template, of a checkpoint or of a prompt, is a program of a stranger: it can loop for hours, or ask for gigabytes within one
expression, which no check from inside the interpreter can stop. So templates run in a small process that imports Jinja alone. The
process starts at the first template, serves one at a time, and ends with its owner. A template that exceeds a limit costs the
process, and the next one gets a new process. A call takes about 0.1 ms more than rendering in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import CheckpointError, HastenError, InvalidRequest
from hasten.core.killable_program import KillableProgram, ProgramEnded
from hasten.text import template_renderer

SECONDS = 2.0
OUTPUT_PER_INPUT = 4  # characters of text per character of template, messages and tools
MIN_OUTPUT = 64 << 10  # characters that any template may write
_LIMITS = f"{SECONDS:g} s, {template_renderer.LIMITS.memory >> 20} MiB, 4 × the input + 64 Ki characters of text"


@dataclass(frozen=True, slots=True)
class TemplateKind:
    """How templates of one kind are rendered, and how error messages name them."""

    name: str  # as in "the chat template"
    inputs: str  # "these messages"
    syntax_error: type[HastenError]
    input_remedy: str  # after an error that the template raises
    limit_remedy: str
    is_strict: bool = False  # a value that is undefined raises an error; otherwise it is empty


CHAT_TEMPLATE = TemplateKind(
    name="the checkpoint's chat template",
    inputs="these messages",
    syntax_error=CheckpointError,
    input_remedy='Pass a list of {"role": ..., "content": ...}',
    limit_remedy="Shorten the messages, or render them yourself and use generate",
)


class TemplateExceedsLimits(InvalidRequest):
    """The template takes too long, too much memory, or writes too much with these messages."""


class TemplateProcess:
    """Renders templates in a process of its own. Threads may share it; their calls take turns."""

    def __init__(self) -> None:
        self._program = KillableProgram(template_renderer.__name__, "renders templates")

    def render(
        self,
        template: str,
        variables: Mapping[str, Any],
        input_length: int,
        deadline: float | None = None,
        kind: TemplateKind = CHAT_TEMPLATE,
    ) -> str:
        """Return the text of a template. ``input_length``: characters of template and variables.

        ``deadline``: when it has to be done at the latest, on ``time.monotonic``; it may take ``SECONDS`` once its turn has come.

        Raises ``InvalidRequest`` if the template raises an error or exceeds a limit, and the kind's syntax error, by default a
        ``CheckpointError``, if it is not a template.
        """
        max_length = OUTPUT_PER_INPUT * input_length + MIN_OUTPUT
        answer = self._ask({"template": template, "variables": variables, "max_length": max_length}, kind, deadline)
        return str(answer["text"])

    def variable_names(self, template: str, kind: TemplateKind = CHAT_TEMPLATE) -> frozenset[str]:
        """Return the names that the template reads and does not set. Errors as in ``render``."""
        return frozenset(self._ask({"template": template, "variables": None, "max_length": len(template)}, kind)["names"])

    @property
    def pid(self) -> int | None:
        """The id of the process that runs; None if none does."""
        return self._program.pid

    def close(self) -> None:
        """End the process. A later call starts a new one."""
        self._program.close()

    def _ask(self, request: Mapping[str, Any], kind: TemplateKind, deadline: float | None = None) -> dict[str, Any]:
        max_bytes = 6 * request["max_length"] + (1 << 16)  # JSON writes a character in six bytes at most
        try:
            answer = self._program.ask({**request, "strict": kind.is_strict}, SECONDS, max_bytes, deadline=deadline)
        except TimeoutError:
            raise _exceeds(kind, f"it takes more than {SECONDS:g} s") from None
        except ProgramEnded:
            raise _exceeds(kind, "its process ended") from None
        fault = answer.get("fault")
        if fault == "syntax":
            raise kind.syntax_error(f"{kind.name} cannot be read", got=answer["message"], remedy="Correct it")
        if fault == "template":
            raise InvalidRequest(f"{kind.name} refuses {kind.inputs}", got=answer["message"].rstrip("."), remedy=kind.input_remedy)
        if fault is not None:
            raise _exceeds(kind, answer["message"])
        return answer


def _exceeds(kind: TemplateKind, how: str) -> TemplateExceedsLimits:
    return TemplateExceedsLimits(
        f"{kind.name} exceeds its limits with {kind.inputs}", got=how, allowed=_LIMITS, remedy=kind.limit_remedy
    )
