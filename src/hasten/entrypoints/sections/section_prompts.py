"""``SectionPrompts``: the token ids of the prompts, which share all tokens up to the heading.

::

    [ question | skeleton ][ heading 1 ] section 1 ...        the brackets are tokenised one by one,
    [ question | skeleton ][ heading 2 ] section 2 ...        so the first one is the same tokens in all prompts
    [ question | skeleton ][ heading 1 ][ section 1 ][ heading 3 ] section 3, which refers to section 1

With a chat template the question is the user's message, and what follows begins the assistant's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hasten.core.errors import InvalidRequest
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.sections.skeleton import FIRST_POINT
from hasten.text.tokenizer import TextTokenizer

HEADING, SEPARATOR = "## ", "\n\n"
NEXT_HEADING = "\n" + HEADING  # a stop string: the section is over where the model begins another

TokenIds = tuple[int, ...]


class SectionPrompts:
    """Raises ``InvalidRequest`` or ``PromptTooLong`` for a question that cannot be a prompt."""

    def __init__(self, input_processor: InputProcessor, question: str, template_kwargs: Mapping[str, Any]) -> None:
        self._input_processor, self._template_kwargs = input_processor, template_kwargs
        self._tokenizer: TextTokenizer = input_processor.tokenizer_for(question, "question", "prompt_token_ids")
        if template_kwargs and not self._tokenizer.chat_template:
            got = ", ".join(sorted(template_kwargs))
            raise InvalidRequest("this checkpoint has no chat template, so it takes no arguments of one", got=got)
        self._question = question
        self.plain = self._encode(question)

    def num_free_tokens(self, prompt_ids: TokenIds) -> int:
        """Return the number of tokens of the context after a prompt; below 1 if the prompt is too long."""
        return self._input_processor.max_model_len - len(prompt_ids)

    def shared(self, headings: Iterable[str]) -> TokenIds:
        """Return the prefix of all sections: the question and the skeleton."""
        skeleton = "\n".join(f"{number}. {heading}" for number, heading in enumerate(headings, 1))
        between = "" if self._tokenizer.chat_template else SEPARATOR
        return self.plain + self._fragment(f"{between}{skeleton}{SEPARATOR}")

    def section(self, shared: TokenIds, heading: str, earlier: Sequence[tuple[str, str]] = ()) -> TokenIds:
        """Return the prompt of one section. ``earlier``: (heading, text) of the sections that it refers to."""
        before = [token for one, text in earlier for token in self._fragment(heading_line(one)) + self._fragment(text + SEPARATOR)]
        return (*shared, *before, *self._fragment(heading_line(heading)))

    def outline(self, instruction: str) -> TokenIds:
        """Return the prompt of the outline, up to the number of its first point."""
        between = "" if self._tokenizer.chat_template else SEPARATOR
        return self._encode(instruction) + self._fragment(between + FIRST_POINT)

    def _encode(self, question: str) -> TokenIds:
        if not self._tokenizer.chat_template:
            self._input_processor.encode(question)  # checks it
            return tuple(self._tokenizer.encode_open(question))
        messages = [{"role": "user", "content": question}]
        return self._input_processor.encode(self._input_processor.chat_prompt(messages, None, self._template_kwargs))

    def _fragment(self, text: str) -> TokenIds:
        return tuple(self._tokenizer.encode_fragment(text))


def heading_line(heading: str) -> str:
    """Return the line that begins a section."""
    return f"{HEADING}{heading}\n"
