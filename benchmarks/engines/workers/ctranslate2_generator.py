"""CTranslate2's ``Generator`` with int8 weights and activations, timed by its callback per token."""

import time
from typing import Any

import ctranslate2

from engines.workers.worker import Ids, Setup, Timed, run_worker


class CTranslate2:
    generator: ctranslate2.Generator

    def convert(self, setup: Setup) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(setup.checkpoint)).convert(str(setup.converted), quantization=setup.weights, force=True)

    def load(self, setup: Setup) -> dict[str, Any]:
        import json

        self.generator = ctranslate2.Generator(
            str(setup.converted), device="cpu", compute_type=setup.weights, inter_threads=1, intra_threads=setup.threads
        )
        self.vocabulary = json.loads((setup.converted / "vocabulary.json").read_text())
        return {"ctranslate2": ctranslate2.__version__, "compute_type": self.generator.compute_type}

    def decode(self, prompts: list[Ids], tokens: int) -> Timed:
        times: dict[int, float] = {}

        def record_time(result: Any) -> bool:
            times[result.step] = time.perf_counter()
            return False

        results = self._generate(prompts, tokens + 1, record_time)
        first = [result.sequences_ids[0][0] for result in results]
        assert {len(result.sequences_ids[0]) for result in results} == {tokens + 1}
        steps = sorted(times)
        return Timed(times[steps[-1]] - times[steps[0]], first)

    def prefill(self, prompt: Ids) -> Timed:
        start = time.perf_counter()
        results = self._generate([prompt], 1, None)
        return Timed(time.perf_counter() - start, [results[0].sequences_ids[0][0]])

    def _generate(self, prompts: list[Ids], tokens: int, callback: Any) -> Any:
        return self.generator.generate_batch(
            [[self.vocabulary[i] for i in ids] for ids in prompts],
            beam_size=1,
            sampling_topk=1,
            max_length=tokens,
            min_length=tokens,
            end_token=[],
            include_prompt_in_result=False,
            callback=callback,
        )


if __name__ == "__main__":
    run_worker(CTranslate2())
