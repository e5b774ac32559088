"""A seed determines the prompts, and no run shares a prefix with an earlier run."""

import pytest

from hasten.bench.workload import Workload
from hasten.core.errors import InvalidOption


def test_prompts_have_the_given_lengths():
    prompts = Workload(num_prompts=5, input_len=12, output_len=3, shared_len=4).prompts(50, 0)
    assert [len(prompt) for prompt in prompts] == [12] * 5
    assert len({prompt[:4] for prompt in prompts}) == 1
    assert len({prompt[4:] for prompt in prompts}) == 5
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)


def test_prompts_differ_between_runs_and_repeat_with_the_seed():
    workload = Workload(num_prompts=2, input_len=8, output_len=1, shared_len=4, seed=3)
    assert workload.prompts(1000, 0) == workload.prompts(1000, 0)
    assert len({workload.prompts(1000, repeat)[0][:4] for repeat in range(3)}) == 3
    assert Workload(num_prompts=2, input_len=8, output_len=1, seed=4).prompts(1000, 0) != workload.prompts(1000, 0)


@pytest.mark.parametrize("wrong", [{"num_prompts": 0}, {"input_len": 0}, {"output_len": -1}, {"shared_len": 8}, {"shared_len": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidOption, match=f"{next(iter(wrong))}"):
        Workload(**{"num_prompts": 1, "input_len": 8, "output_len": 1, **wrong})
