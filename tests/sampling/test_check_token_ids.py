from typing import Any

import pytest

from hasten.core.errors import InvalidRequest
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.check_token_ids import check_token_ids


def test_known_ids_pass():
    check_token_ids(SamplingParams(), 10)
    every_field: dict[str, Any] = {
        "allowed_token_ids": (0, 9),
        "bad_words_ids": ((0, 9),),
        "logit_bias": {9: 1.0},
        "stop_token_ids": (9,),
    }
    check_token_ids(SamplingParams(**every_field), 10)


def test_every_field_and_id_is_named_in_one_error():
    params = SamplingParams(
        allowed_token_ids=(3, 10), bad_words_ids=((1, 12), (11,)), logit_bias={99: 1.0, 2: 1.0}, stop_token_ids=(10, 1000)
    )
    with pytest.raises(InvalidRequest) as caught:
        check_token_ids(params, 10)
    for part in (
        "allowed_token_ids has 10",
        "bad_words_ids has 11, 12",
        "logit_bias has 99",
        "stop_token_ids has 10, 1000",
        "0 to 9",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "field, value",
    [("allowed_token_ids", (10,)), ("bad_words_ids", ((0, 10),)), ("logit_bias", {10: 0.5}), ("stop_token_ids", (10,))],
)
def test_the_first_id_past_the_end_is_refused(field, value):
    check_token_ids(SamplingParams(**{field: value}), 11)
    with pytest.raises(InvalidRequest, match=f"{field} has 10"):
        check_token_ids(SamplingParams(**{field: value}), 10)
