"""``WrittenLLM``: a demo that thinks and calls tools as it is told: its answers are written, its prompts are rendered and read."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from hasten.core.output import Delta
from hasten.core.result import FinishReason
from hasten.core.sampling_params import SamplingParams
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.entrypoints.chat_answers import DeltaReader, PreparedChat

DEMO = Path(__file__).parents[3] / "src" / "hasten" / "demo" / "model"
OPTIONS = {
    "threads": 1,
    "kv_cache_memory": "64MiB",
    "max_model_len": 2048,
    "reasoning_parser": "qwen3",
    "speculative_method": "off",
}


def thinking_folder(folder: Path) -> Path:
    """Return a copy of the demo whose template writes thoughts, and begins one where ``enable_thinking`` is set."""
    shutil.copytree(DEMO, folder, dirs_exist_ok=True)
    template = (DEMO / "chat_template.jinja").read_text()
    opener, content = "{%- if add_generation_prompt %}<|im_start|>assistant\n", "{{ message['content'] or '' }}"
    assert template.count(opener) == template.count(content) == 1
    thought = "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    template = template.replace(opener, opener + "{{ '<think>\\n' if enable_thinking }}").replace(content, thought + content)
    (folder / "chat_template.jinja").write_text(template)
    return folder


class WrittenLLM(AsyncLLM):
    """``pieces``: the text of the next answers, one piece per token; ``finish``: how they end; ``error`` follows the last piece."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), **OPTIONS)
        self.pieces: Sequence[str] = ("Hello",)
        self.finish: tuple[FinishReason, str | int | None] = (FinishReason.STOP, None)
        self.error: Exception | None = None
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.num_read = 0  # pieces of the last answer that were taken
        self.is_stuck = False  # no answer comes until the request ends
        self.answer_began, self.answer_ended = threading.Event(), threading.Event()  # the answer

    def write(self, text: str, *, size: int = 3, finish: FinishReason = FinishReason.STOP, stop: str | int | None = None) -> None:
        """Answer the next requests with a text in pieces of ``size`` characters."""
        self.pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        self.finish, self.error = (finish, stop), None

    async def stream_chat(
        self, messages: Any, sampling_params: SamplingParams | None = None, **options: Any
    ) -> AsyncGenerator[Delta, None]:
        assert isinstance(messages, PreparedChat) and sampling_params is not None
        self.prompts.append(messages.text)
        self.params.append(messages.answers.params(sampling_params) or sampling_params)
        self.answer_began.set()
        try:
            if self.is_stuck:
                await asyncio.Event().wait()
            async for delta in self._answer(DeltaReader(messages.answers, messages.asked)):
                yield delta
        finally:
            self.answer_ended.set()

    async def _answer(self, reader: DeltaReader) -> AsyncGenerator[Delta, None]:
        for number, piece in enumerate(self.pieces):
            is_last = number == len(self.pieces) - 1 and self.error is None
            reason, stop = self.finish if is_last else (None, None)
            self.num_read = number + 1
            yield reader.read(Delta(request_id="r", index=0, text=piece, token_ids=(7,), finish_reason=reason, stop_reason=stop))
        if self.error is not None:
            raise self.error
