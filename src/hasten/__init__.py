"""hasten: run open-weight language models faster and cheaper, and see what each speed-up costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.core.answer import ToolCall, ToolCallDelta
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.output import Choice, CompletionOutput, Delta, RequestMetrics, RequestOutput, ScoreOutput
from hasten.core.request import PrefixPin
from hasten.core.sampling_params import SamplingParams
from hasten.core.soft_prompt import SoftPrompt
from hasten.core.structured_outputs import StructuredOutputs
from hasten.core.version import __version__ as __version__

if TYPE_CHECKING:
    from hasten.entrypoints.async_llm import AsyncLLM
    from hasten.entrypoints.llm import LLM

__all__ = [
    "LLM",
    "AsyncLLM",
    "Choice",
    "CompletionOutput",
    "Delta",
    "HastenError",
    "InvalidRequest",
    "PrefixPin",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "ScoreOutput",
    "SoftPrompt",
    "StructuredOutputs",
    "ToolCall",
    "ToolCallDelta",
]


def __getattr__(name: str) -> Any:
    """``LLM`` and ``AsyncLLM`` load torch, so they are imported when they are first asked for."""
    if name == "LLM":
        from hasten.entrypoints.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from hasten.entrypoints.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")
