"""``Workload``: prompts of random token ids and outputs of a fixed length, so that every run does the same work."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hasten.core.errors import InvalidOption
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sizes of a benchmark. Raises ``InvalidOption`` naming every number that is out of range."""

    num_prompts: int
    input_len: int  # tokens of each prompt
    output_len: int  # tokens of each output
    shared_len: int = 0  # tokens of the prefix that all prompts share
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [f"{name}={getattr(self, name)}" for name in ("num_prompts", "input_len", "output_len") if getattr(self, name) < 1]
        if wrong:
            raise InvalidOption("a benchmark needs prompts and tokens", got=", ".join(wrong), allowed="from 1")
        if not 0 <= self.shared_len < self.input_len:
            raise InvalidOption(
                "shared_len is out of range", got=self.shared_len, allowed=f"0 to {self.input_len - 1}, below input_len"
            )

    def prompts(self, vocab_size: int, repeat: int) -> list[tuple[int, ...]]:
        """Return the prompts of one run. They differ between runs, so that no run hits the prefix cache of an earlier one."""
        rng = random.Random(f"{self.seed}/{repeat}")
        shared = rng.choices(range(vocab_size), k=self.shared_len)
        suffix_len = self.input_len - self.shared_len
        return [(*shared, *rng.choices(range(vocab_size), k=suffix_len)) for _ in range(self.num_prompts)]

    def requests(self, vocab_size: int, repeat: int, arrival: float) -> list[Request]:
        """Return greedy requests that ignore end-of-sequence tokens: the length of an output must not depend on its text."""
        params = SamplingParams(temperature=0.0, max_tokens=self.output_len, ignore_eos=True, seed=self.seed)
        return [
            Request(request_id=f"bench-{repeat}-{number}", prompt_token_ids=prompt, params=params, arrival=arrival)
            for number, prompt in enumerate(self.prompts(vocab_size, repeat))
        ]
