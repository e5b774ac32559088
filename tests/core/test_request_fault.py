"""Errors of outputs that a caller can correct, as the engine of the demo model gives them."""

from __future__ import annotations

import pytest

from hasten import LLM, SamplingParams
from hasten.core.request_fault import is_request_fault
from hasten.core.structured_outputs import StructuredOutputs


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_token_ids": [5], "bad_words_ids": [[5]]},
        {"structured_outputs": StructuredOutputs(regex="(a{1000}){1000}")},
    ],
    ids=["no token", "grammar"],
)
def test_settings_that_end_an_output_are_the_callers(settings: dict[str, object]) -> None:
    with LLM("demo", threads=1, max_model_len=64, kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(["def f(a):"], SamplingParams(temperature=0, max_tokens=4, **settings), use_tqdm=False)
    assert is_request_fault(output.error), output.error


def test_other_errors_are_not() -> None:
    assert not is_request_fault(None)
    assert not is_request_fault("the model's logits for this request are not finite numbers (NaN or infinity)")
    assert not is_request_fault("hasten could not process this request (KeyError: 1)")
