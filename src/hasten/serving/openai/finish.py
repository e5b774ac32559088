"""How answers end, in OpenAI's words. An answer that failed is an error and never a result."""

from __future__ import annotations

from hasten.core.output import CompletionOutput, Delta, RequestOutput
from hasten.core.request_fault import is_request_fault
from hasten.core.result import FinishReason
from hasten.serving.api_error import ApiError, ErrorKind, invalid


def finish_reason(reason: FinishReason | None, *, num_calls: int = 0, max_calls: int | None = None) -> str | None:
    """Return ``finish_reason`` of a choice.

    ``num_calls``: complete tool calls of the answer. ``max_calls``: those that the request wants; None: all. An answer that was cut
    before it had all calls ends with ``length``, so that a client sees that some may be missing.
    """
    if reason is None:
        return None
    has_all = reason is not FinishReason.LENGTH or (max_calls is not None and num_calls >= max_calls)
    return "tool_calls" if num_calls and has_all else str(reason)


def check_delta(delta: Delta) -> None:
    """Raise ``ApiError`` if the answer of a delta has failed."""
    if delta.output is not None:
        check_output(delta.output)
    elif delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
        raise _failed(None, delta.finish_reason)


def check_output(output: RequestOutput) -> None:
    """Raise ``ApiError`` if an answer of a request has failed."""
    failed = next((each for each in output.outputs if _has_failed(each)), None)
    if output.error is not None or failed is not None:
        raise _failed(output.error, FinishReason.ERROR if failed is None else failed.finish_reason)


def _has_failed(completion: CompletionOutput) -> bool:
    return completion.finish_reason in (FinishReason.ERROR, FinishReason.ABORT)


def _failed(error: str | None, reason: FinishReason | None) -> ApiError:
    if reason is FinishReason.ABORT:
        return ApiError(ErrorKind.UNAVAILABLE, error or "the request was ended before its answer was complete", code="aborted")
    if is_request_fault(error):
        return invalid(str(error))
    return ApiError(ErrorKind.INTERNAL, error or "the model failed on this request", code="generation_failed")
