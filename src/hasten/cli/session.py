"""``Session``: the conversation and settings that ``hasten chat`` keeps between turns.

It prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.cli.options import OptionValues
from hasten.cli.sampling_options import SAMPLING, Settings, merge_settings
from hasten.core.errors import InvalidOption, InvalidRequest, nearest, show
from hasten.core.output import Delta

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

Message = dict[str, str]


class Session:
    """One conversation.

    ``history`` has the user's and the assistant's messages; the system message is separate.
    """

    def __init__(
        self,
        llm: LLM,
        model: str,
        *,
        system: str | None,
        preset: str | None,
        options: OptionValues,
        file_values: OptionValues | None = None,
    ) -> None:
        """``file_values``: the settings of a file, between preset and options."""
        self.llm, self.model, self.system, self._file_values = llm, model, system, file_values
        self.preset, self.options = preset, options
        self.history: list[Message] = []
        self.settings = self._merge_settings(preset, options)

    def stream_answer(self, question: str) -> Iterator[Delta]:
        """Append ``question`` to the history and stream the answer.

        ``pop_question`` undoes this if the answer fails.
        """
        self.history.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self.llm.stream_chat([*system, *self.history], self.settings.params)

    def add_answer(self, text: str) -> None:
        self.history.append({"role": "assistant", "content": text})

    def pop_question(self) -> str:
        """Remove the last question and its answer, and return the question.

        Raises ``InvalidRequest`` without one.
        """
        questions = [index for index, message in enumerate(self.history) if message["role"] == "user"]
        if not questions:
            raise InvalidRequest("there is no question yet", remedy="Ask something first")
        question = self.history[questions[-1]]["content"]
        del self.history[questions[-1] :]
        return question

    def set(self, name: str, text: str) -> None:
        """Change one setting or the preset; ``default`` resets it.

        Raises ``HastenError`` and then changes nothing.
        """
        name = name.replace("-", "_")
        if name == "preset":
            preset = None if text == "default" else text
            self.settings, self.preset = self._merge_settings(preset, self.options), preset
            return
        if name not in SAMPLING.help:
            raise InvalidOption("unknown setting", got=show(name), remedy=nearest(name, [*SAMPLING.help, "preset"]))
        options = {field: value for field, value in self.options.items() if field != name}
        if text != "default":
            options[name] = SAMPLING.parse(name, text)
        self.settings, self.options = self._merge_settings(self.preset, options), options

    def save(self, file: Path) -> None:
        content = {"model": self.model, "system": self.system, "messages": self.history}
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def load(self, file: Path) -> None:
        """Replace the conversation by a saved one.

        Raises ``InvalidRequest`` for any other file and then changes nothing.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            messages = [{"role": _text(m["role"]), "content": _text(m["content"])} for m in content["messages"]]
            system = None if content["system"] is None else _text(content["system"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            got = f"{type(error).__name__}: {error}"
            raise InvalidRequest(f"{file} holds no conversation", got=got, remedy="Give a file that /save wrote") from None
        self.system, self.history = system, messages

    def _merge_settings(self, preset: str | None, options: OptionValues) -> Settings:
        settings = merge_settings(self.llm.default_sampling_params(), preset, options, self._file_values)
        if settings.params.n != 1 or settings.params.beam_width is not None:
            raise InvalidOption(
                "a conversation continues from one answer",
                got=f"n={settings.params.n}, beam_width={settings.params.beam_width}",
                remedy="Use generate for several outputs or beam search",
            )
        return settings


def _text(value: object) -> str:
    """Return a text of a saved conversation. Raises ``TypeError`` or ``ValueError`` for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{show(value)} is not a text")
    value.encode()  # half of a surrogate pair cannot be encoded
    return value
