"""``ChatAnswers``: prompts of conversations, and answers as content, thoughts and tool calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.answer import Answer
from hasten.core.errors import InvalidRequest, show
from hasten.core.output import CompletionOutput, Delta, RequestOutput
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import MAX_SOURCE, StructuredOutputs
from hasten.core.tool_definition import ToolDefinition, read_tool_definitions
from hasten.entrypoints.answer_parsers import answer_parsers
from hasten.entrypoints.input_processor import InputProcessor, Prompt
from hasten.text.answers.answer_parser import AnswerParser
from hasten.text.answers.families import syntax_markers
from hasten.text.answers.tool_grammar import tool_grammar
from hasten.text.chat_template import read_tools

TOOL_CHOICES = ("auto", "none", "required")
_ALLOWED_CHOICES = 'auto, none, required, {"type": "function", "function": {"name": ...}}'
ToolChoice = str | Mapping[str, Any]
_PROMPT_END = 256  # characters of the prompt that tell whether the answer begins inside a thought


def _read_choice(tool_choice: object) -> str:
    """Return "auto", "none", "required" or the name of a tool. Raises ``InvalidRequest``."""
    if isinstance(tool_choice, str) and tool_choice in TOOL_CHOICES:
        return tool_choice
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name in TOOL_CHOICES:
        raise InvalidRequest("tool_choice has an unknown value", got=show(tool_choice), allowed=_ALLOWED_CHOICES)
    return name


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    text: str
    token_ids: tuple[int, ...]
    end: str  # the last characters of the text, or the start of the thought that it ends in

    @property
    def prompt(self) -> Prompt:
        return {"prompt_token_ids": self.token_ids}


@dataclass(frozen=True, slots=True)
class ChatAnswers:
    """``tool_parser``, ``reasoning_parser``: their names, or None."""

    processor: InputProcessor
    schemas: list[Any] | None  # as the chat template takes them
    tools: tuple[ToolDefinition, ...]
    tool_parser: str | None
    reasoning_parser: str | None
    template: str  # the chat template
    choice: str = "auto"  # or "none", "required", or the name of a tool

    @classmethod
    def open(cls, processor: InputProcessor, tools: Sequence[Any] | None, tool_choice: ToolChoice) -> ChatAnswers:
        """Return how to ask and to read.

        Raises ``InvalidRequest`` for wrong tools, or if no parser reads the calls.

        ``tool_choice`` none leaves the tools out of the prompt; required, or a function's name in OpenAI's form, makes the answer
        calls by a grammar.
        """
        choice = _read_choice(tool_choice)
        schemas = read_tools(tools)
        definitions = () if schemas is None else read_tool_definitions(schemas)
        if choice == "none" or not definitions:
            schemas, definitions = None, ()
        source = None if processor.tokenizer is None else processor.tokenizer.chat_template_source(has_tools=bool(definitions))
        choices = answer_parsers(processor.options, processor.tokenizer, has_tools=bool(definitions))
        if definitions and source is not None and "tools" in source and choices.tool.name is None:
            raise InvalidRequest(
                "no parser reads the tool calls of this checkpoint",
                got=choices.tool.reason,
                remedy="Put the tools into the prompt yourself and read the text",
            )
        tool_parser = choices.tool.name if definitions else None
        return cls(processor, schemas, definitions, tool_parser, choices.reasoning.name, source or "", choice)

    def prompt(self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]) -> ChatPrompt:
        """Return the prompt of a conversation. Raises ``InvalidRequest``."""
        text = self.processor.render_chat(messages, self.schemas, template_kwargs)
        token_ids = tuple(self.processor.encode_chat(text))
        begun = self.processor.guides.begun_thought(token_ids)
        return ChatPrompt(text, token_ids, begun or text[-_PROMPT_END:])

    def prompts(self, messages: Any, template_kwargs: Mapping[str, Any]) -> list[ChatPrompt]:
        """Return the prompts of one conversation, or of a list of them."""
        is_batch = isinstance(messages, (list, tuple)) and messages and isinstance(messages[0], (list, tuple))
        return [self.prompt(one, template_kwargs) for one in (messages if is_batch else [messages])]

    def params(self, params: SamplingParams | None) -> SamplingParams | None:
        """Return the settings of a request for this answer.

        They have a grammar if a call is demanded, and special tokens in the text if some of them are the parsers' markers.
        """
        if self.choice not in ("auto", "none"):
            checked, grammar = self.processor.check_params(params), self.grammar(self.choice)
            if checked.structured_outputs is not None:
                raise InvalidRequest("structured_outputs does not go with a tool_choice that demands a call", remedy="Pass one")
            if len(grammar) > MAX_SOURCE:
                raise InvalidRequest(
                    "the tools are too large for a tool_choice that demands a call",
                    got=f"a grammar of {len(grammar)} characters",
                    allowed=f"up to {MAX_SOURCE}",
                    remedy="Name one of them, or pass fewer",
                )
            params = checked.replace(structured_outputs=StructuredOutputs(grammar=grammar))
        tokenizer = self.processor.tokenizer
        names = (self.tool_parser, self.reasoning_parser)
        if tokenizer is None or not any(each in tokenizer.special_token_ids for each in syntax_markers(*names)):
            return params
        checked = self.processor.check_params(params)
        return checked.replace(skip_special_tokens=False) if checked.skip_special_tokens else checked

    def all_params(
        self, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams] | None:
        """Return ``params`` of one request or of several, one each."""
        if isinstance(params, (list, tuple)):
            return [self.params(each) or each for each in params]
        return self.params(params if isinstance(params, SamplingParams) else None) or params

    def read_all(self, outputs: Sequence[RequestOutput], prompts: Sequence[ChatPrompt]) -> list[RequestOutput]:
        """Return outputs whose completions are parsed."""
        return [self.with_answers(output, {}, asked) for output, asked in zip(outputs, prompts, strict=True)]

    def stream(self, deltas: Iterable[Delta], asked: ChatPrompt) -> Generator[Delta, None, None]:
        """Yield deltas of content, thoughts and calls. Closing the generator closes ``deltas``."""
        reader = DeltaReader(self, asked)
        try:
            for delta in deltas:
                yield reader.read(delta)
        finally:
            if isinstance(deltas, Generator):
                deltas.close()

    def grammar(self, choice: str) -> str:
        """Return the grammar of ``tool_grammar`` for the tools of this call.

        Raises ``InvalidRequest`` without tools, and for a choice that is none of them.
        """
        if self.tool_parser is None or self.processor.tokenizer is None:
            raise InvalidRequest("tool_choice demands a call, and there are no tools", got=show(choice), remedy="Pass tools")
        special = self.processor.tokenizer.special_token_ids
        return tool_grammar(self.tool_parser, self.tools, choice, special_token_ids=special, template=self.template)

    def parser(self, asked: ChatPrompt) -> AnswerParser:
        return AnswerParser(self.tool_parser, self.reasoning_parser, prompt=asked.end, tools=self.tools)

    def with_answers(self, output: RequestOutput, streamed: Mapping[int, Answer], asked: ChatPrompt) -> RequestOutput:
        """Return the output with answers that were streamed, or read now."""
        completions = []
        for completion in output.outputs:
            answer = streamed.get(completion.index)
            if answer is None:
                parser = self.parser(asked)
                parser.feed(completion.text)
                parser.finish()
                answer = parser.answer
            completions.append(_with_answer(completion, answer))
        return dataclasses.replace(output, outputs=tuple(completions))


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A conversation that is rendered and tokenised, and how its answer is read."""

    answers: ChatAnswers
    asked: ChatPrompt

    @classmethod
    def of(
        cls,
        processor: InputProcessor,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        tool_choice: ToolChoice,
        template_kwargs: Mapping[str, Any],
    ) -> PreparedChat:
        """Raises ``InvalidRequest``."""
        answers = ChatAnswers.open(processor, tools, tool_choice)
        return cls(answers, answers.prompt(messages, template_kwargs))

    @property
    def text(self) -> str:
        """The prompt, as the chat template wrote it."""
        return self.asked.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.asked.token_ids


class DeltaReader:
    """Reads the deltas of one request, in order."""

    def __init__(self, answers: ChatAnswers, asked: ChatPrompt) -> None:
        self._answers, self._asked = answers, asked
        self._parsers: dict[int, AnswerParser] = {}
        self._finished: dict[int, Answer] = {}  # by index

    def read(self, delta: Delta) -> Delta:
        parser = self._parsers.get(delta.index)
        if parser is None:
            parser = self._parsers[delta.index] = self._answers.parser(self._asked)
        found = [parser.feed(delta.text)]
        if delta.finish_reason is not None:
            found.append(parser.finish())
            self._finished[delta.index] = parser.answer
        output = None
        if delta.output is not None:
            output = self._answers.with_answers(delta.output, self._finished, self._asked)
        return dataclasses.replace(
            delta,
            text="".join(each.content for each in found),
            reasoning="".join(each.reasoning for each in found),
            tool_calls=tuple(call for each in found for call in each.tool_calls),
            output=output,
        )


def _with_answer(completion: CompletionOutput, answer: Answer) -> CompletionOutput:
    return dataclasses.replace(
        completion, text=answer.content, reasoning=answer.reasoning, tool_calls=answer.tool_calls, warnings=answer.warnings
    )
