"""Values that cross the engine's boundary are plain data: they survive msgpack."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from pydantic import TypeAdapter

from hasten.core.output import CompletionOutput, Delta, RequestMetrics, RequestOutput, RequestRejected
from hasten.core.plan import BlockCopy, RowPlan, StepPlan
from hasten.core.request import PrefixPin, Request
from hasten.core.result import Continuation, Finish, FinishReason, StepResult, TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs

LOGPROB = TokenLogprob(5, -0.5, 1, ((5, -0.5), (7, -1.25)))
PARAMS = SamplingParams(
    temperature=0.7, top_k=40, logit_bias={3: -1.5}, stop=("\n\n",), bad_words_ids=((1, 2), (3,)), logprobs=2, seed=2**62
)
GUIDED = SamplingParams(structured_outputs=StructuredOutputs(choice=("a", "é")), max_tokens=9)
COMPLETION = CompletionOutput(
    index=0, text="é", token_ids=(5,), logprobs=(LOGPROB,), finish_reason=FinishReason.STOP, stop_reason="x"
)
OUTPUT = RequestOutput(
    request_id="r",
    prompt=None,
    prompt_token_ids=(1, 2),
    outputs=(COMPLETION,),
    finished=True,
    seed=4,
    metrics=RequestMetrics(arrival=1.5, first_token=2.0, num_output_tokens=1, new_pins=(PrefixPin(num_tokens=16, seconds=300.0),)),
)
VALUES = [
    Request(request_id="r", prompt_token_ids=(1, 2), params=PARAMS, eos_token_ids=(0,), cache_salt="t"),
    Request(request_id="r", prompt_token_ids=(1, 2), params=GUIDED, eos_token_ids=(0,)),
    StepPlan((RowPlan(3, 4, (9,), ((None, 7), (1, 2)), 1),), (BlockCopy(0, 1, 2),)),
    StepResult((Continuation(3, (5, 8), Finish(FinishReason.LENGTH), 1),), (4,), (6,)),
    Delta(request_id="r", index=0, text="é", token_ids=(5,), logprobs=(LOGPROB,), output=OUTPUT),
    RequestRejected(request_id="r", kind="PromptTooLong", what="too long", got="9"),
    OUTPUT,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_round_trip_through_msgpack(value: Any) -> None:
    adapter = TypeAdapter(type(value))
    packed = msgpack.packb(adapter.dump_python(value, mode="python"), default=str)
    assert adapter.validate_python(msgpack.unpackb(packed, strict_map_key=False)) == value


def test_the_metrics_of_a_delta_which_do_not_compare_survive_too() -> None:
    adapter = TypeAdapter(Delta)
    delta = Delta(request_id="r", index=0, text="", token_ids=(5,), metrics=OUTPUT.metrics)
    packed = msgpack.packb(adapter.dump_python(delta))
    assert adapter.validate_python(msgpack.unpackb(packed)).metrics == OUTPUT.metrics


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_cannot_be_changed(value: Any) -> None:
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


def test_sampled_sequence_ids_names_the_sequence_of_each_row_of_logits() -> None:
    rows = [RowPlan(sequence_id, 0, (4, 5, 6), ((0,),), count) for sequence_id, count in ((7, 1), (3, 0), (5, 3))]
    assert StepPlan(tuple(rows)).sampled_sequence_ids == [7, 5, 5, 5]
