"""The slash commands of ``hasten chat``.

Each changes the session and returns what the chat loop prints or does next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hasten.cli.session import Session
from hasten.core.errors import InvalidRequest, nearest, show


@dataclass(frozen=True, slots=True)
class CommandResult:
    """``text`` is printed, ``question`` is asked again, ``quit`` ends the session."""

    text: str = ""
    question: str | None = None
    quit: bool = False


def run_command(session: Session, line: str) -> CommandResult:
    """Run one line that starts with a slash.

    Raises ``HastenError`` for an unknown command or a wrong argument.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise InvalidRequest("unknown command", got=show(name), remedy=nearest(name, COMMANDS))
    return COMMANDS[name][1](session, argument.strip())


def _help(session: Session, argument: str) -> CommandResult:
    rows = [f"  {usage}" for usage, _ in COMMANDS.values()]
    return CommandResult("\n".join([*rows, "Ctrl-C stops an answer; Ctrl-D quits."]))


def _set(session: Session, argument: str) -> CommandResult:
    name, _, value = argument.partition(" ")
    if not value:
        raise InvalidRequest("/set needs a name and a value", got=show(argument), remedy="For instance: /set temperature 0.7")
    session.set(name, value.strip())
    return CommandResult(f"settings: {session.settings}")


def _show(session: Session, argument: str) -> CommandResult:
    rows = [f"  {name}: {value}" for name, value in session.llm.describe().items() if name != "schemes"]
    rows += [f"  system: {session.system}"] if session.system else []
    rows += [f"  messages: {len(session.history)}", f"  settings: {session.settings}"]
    return CommandResult("\n".join(rows))


def _system(session: Session, argument: str) -> CommandResult:
    session.system = argument or None
    return CommandResult("system message set" if argument else "system message removed")


def _clear(session: Session, argument: str) -> CommandResult:
    session.history.clear()
    return CommandResult("conversation cleared")


def _save(session: Session, argument: str) -> CommandResult:
    file = _file("/save", argument)
    try:
        session.save(file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name, or half of a surrogate pair in a message
        raise InvalidRequest(f"{file} cannot be written", got=error, remedy="Give another file") from None
    return CommandResult(f"{len(session.history)} messages saved to {file}")


def _load(session: Session, argument: str) -> CommandResult:
    file = _file("/load", argument)
    session.load(file)
    return CommandResult(f"{len(session.history)} messages loaded from {file}")


def _file(command: str, argument: str) -> Path:
    if not argument:
        raise InvalidRequest(f"{command} needs a file", remedy=f"For instance: {command} chat.json")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # no such user
        raise InvalidRequest(f"{argument} names no file", got=error, remedy="Write the full path") from None


# name -> (usage, function)
COMMANDS: dict[str, tuple[str, Callable[[Session, str], CommandResult]]] = {
    "/help": ("/help              list the commands", _help),
    "/set": ("/set NAME VALUE    change a sampling setting or the preset; the value default resets it", _set),
    "/show": ("/show              show the model, its memory and the settings", _show),
    "/system": ("/system TEXT       set the system message, or remove it without TEXT", _system),
    "/clear": ("/clear             clear the conversation", _clear),
    "/save": ("/save FILE         write the conversation to a file", _save),
    "/load": ("/load FILE         read a saved conversation", _load),
    "/retry": (
        "/retry             answer the last question again",
        lambda session, _: CommandResult(question=session.pop_question()),
    ),
    "/bye": ("/bye               quit", lambda session, _: CommandResult(quit=True)),
}
