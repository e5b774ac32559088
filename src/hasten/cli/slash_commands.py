"""The slash commands of chat: one function each, which changes the session and returns what to tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from hasten.cli.session import Session
from hasten.core.errors import InvalidRequest, nearest


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """``text`` goes to the user; ``question`` is asked again; ``leave`` ends the session."""

    text: str = ""
    question: str | None = None
    leave: bool = False


def obey(session: Session, line: str) -> Told:
    """Runs a line that starts with a slash. Raises ``HastenError`` for an unknown command or a wrong argument."""
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        raise InvalidRequest("unknown command", got=repr(name), remedy=nearest(name, COMMANDS))
    return COMMANDS[name][1](session, rest.strip())


def _help(session: Session, rest: str) -> Told:
    rows = "\n".join(f"  {usage}" for usage, _ in COMMANDS.values())
    return Told(f"{rows}\nCtrl-C stops an answer; Ctrl-D leaves.")


def _set(session: Session, rest: str) -> Told:
    name, _, value = rest.partition(" ")
    if not value:
        raise InvalidRequest("/set needs a name and a value", got=repr(rest), remedy="For instance: /set temperature 0.7")
    session.set(name, value.strip())
    return Told(f"settings: {session.settings}" if session.settings.origins else "settings: all defaults")


def _show(session: Session, rest: str) -> Told:
    rows = [f"  {name}: {value}" for name, value in session.describe().items()]
    rows += [f"  system: {session.system}"] if session.system else []
    rows += [f"  messages: {len(session.turns)}", f"  settings: {session.settings if session.settings.origins else 'all defaults'}"]
    return Told("\n".join(rows))


def _system(session: Session, rest: str) -> Told:
    session.system = rest or None
    return Told("system message set" if rest else "system message removed")


def _clear(session: Session, rest: str) -> Told:
    session.turns.clear()
    return Told("conversation cleared")


def _save(session: Session, rest: str) -> Told:
    file = _file("/save", rest)
    try:
        session.save(file)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written", got=error, remedy="Give another file") from None
    return Told(f"{len(session.turns)} messages saved to {file}")


def _load(session: Session, rest: str) -> Told:
    file = _file("/load", rest)
    session.load(file)
    return Told(f"{len(session.turns)} messages loaded from {file}")


def _retry(session: Session, rest: str) -> Told:
    return Told(question=session.forget())


def _bye(session: Session, rest: str) -> Told:
    return Told(leave=True)


def _file(command: str, rest: str) -> Path:
    if not rest:
        raise InvalidRequest(f"{command} needs a file", remedy=f"For instance: {command} chat.json")
    return Path(rest).expanduser()


COMMANDS: dict[str, tuple[str, Callable[[Session, str], Told]]] = {
    "/help": ("/help              this list", _help),
    "/set": ("/set NAME VALUE    change a sampling setting or the preset; VALUE default takes it back", _set),
    "/show": ("/show              model, memory and settings", _show),
    "/system": ("/system TEXT       the system message; without TEXT: none", _system),
    "/clear": ("/clear             forget the conversation", _clear),
    "/save": ("/save FILE         write the conversation to a file", _save),
    "/load": ("/load FILE         read it back", _load),
    "/retry": ("/retry             answer the last question again", _retry),
    "/bye": ("/bye               leave", _bye),
}
