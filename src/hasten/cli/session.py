"""A conversation and its settings: what chat keeps between turns. It prints nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.cli.options import Given
from hasten.cli.sampling_options import SAMPLING, Settings, merge_settings
from hasten.core.errors import InvalidOption, InvalidRequest, nearest
from hasten.core.output import Delta

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

Message = dict[str, str]


class Session:
    """``turns`` are the user's and the assistant's messages; a system message is kept apart, so that /clear keeps it."""

    def __init__(self, llm: LLM, model: str, *, system: str | None, preset: str | None, given: Given) -> None:
        self._llm, self.model, self.system = llm, model, system
        self.preset, self.given = preset, given
        self.turns: list[Message] = []
        self.settings: Settings = self._merge_settings(preset, given)

    @property
    def messages(self) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def describe(self) -> dict[str, Any]:
        return self._llm.describe()

    def ask(self, text: str) -> Iterator[Delta]:
        """The answer as it comes. The turn counts from here on; take it back with ``forget`` if it fails."""
        self.turns.append({"role": "user", "content": text})
        return self._llm.stream_chat(self.messages, self.settings.params)

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def forget(self) -> str:
        """Takes the last question back, and its answer; returns the question. Raises ``InvalidRequest`` if there is none."""
        asked = [index for index, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not asked:
            raise InvalidRequest("there is no question yet", remedy="Ask something first")
        question = self.turns[asked[-1]]["content"]
        del self.turns[asked[-1] :]
        return question

    def set(self, name: str, text: str) -> None:
        """Changes one setting, or the preset; ``default`` takes the change back. Raises ``HastenError`` and changes nothing."""
        name = name.replace("-", "_")
        if name == "preset":
            preset = None if text == "default" else text
            self.settings, self.preset = self._merge_settings(preset, self.given), preset
            return
        if name not in SAMPLING.help:
            raise InvalidOption("unknown setting", got=repr(name), remedy=nearest(name, [*SAMPLING.help, "preset"]))
        given = {field: value for field, value in self.given.items() if field != name}
        if text != "default":
            given[name] = SAMPLING.parse(name, text)
        self.settings, self.given = self._merge_settings(self.preset, given), given

    def save(self, file: Path) -> None:
        kept = {"model": self.model, "system": self.system, "messages": self.turns}
        file.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def load(self, file: Path) -> None:
        """Replaces the conversation. Raises ``InvalidRequest`` for a file that holds none, and changes nothing."""
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            system, turns = kept["system"], [{"role": str(m["role"]), "content": str(m["content"])} for m in kept["messages"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise InvalidRequest(f"{file} holds no conversation", got=got, remedy="Give a file that /save wrote") from None
        self.system, self.turns = system, turns

    def _merge_settings(self, preset: str | None, given: Given) -> Settings:
        settings = merge_settings(self._llm.default_sampling_params(), preset, given)
        if settings.params.n != 1 or settings.params.beam_width is not None:
            raise InvalidOption(
                "a conversation goes on from one answer",
                got=f"n={settings.params.n}, beam_width={settings.params.beam_width}",
                remedy="Use generate for several answers or beam search",
            )
        return settings
