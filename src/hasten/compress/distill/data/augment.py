"""``augment``: new examples after the pattern of seeds (Self-Instruct: Wang et al., 2023)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hasten.compress.distill.data.ask_templates import AskTemplates
from hasten.compress.distill.data.example_pairs import Pair
from hasten.compress.distill.data.generate import Record, output_fields
from hasten.compress.distill.data.near_copies import NearCopies
from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
from hasten.compress.distill.data.text_teacher import TeacherText, TextRequest
from hasten.core.sampling_params import SamplingParams
from hasten.training.corpus import derived_seed

MAX_TRIES = 20  # new inputs per example that is wanted
SHOTS = 4
THRESHOLD = 0.7
TRIAL: dict[str, dict[str, Any]] = {
    "input": {"examples": [{"input": "?", "output": "?"}]},
    "output": {"examples": [{"input": "?", "output": "?"}], "input": "?"},
}
_STOPS = {"input": ("\nInput:", "\nOutput:"), "output": ("\nInput:",)}


def augment(
    teacher: RecordedTeacher,
    seeds: Sequence[Pair],
    count: int,
    params: SamplingParams,
    templates: AskTemplates,
    *,
    shots: int = SHOTS,
    threshold: float = THRESHOLD,
    seed: int = 0,
    dropped: Counter[str],
) -> Iterator[Record]:
    """Yield up to ``count`` new pairs of input and output.

    For new input i, ``shots`` seeds are drawn by ``seed`` and i. An input whose ROUGE-L with a seed or with an earlier new input is
    ``threshold`` or more is dropped. The records do not depend on the teacher's batches. ``dropped`` counts by reason.
    """
    copies = NearCopies(threshold)
    for pair in seeds:
        copies.add(pair.input_text, always=True)
    asking = _Asking(seeds, params, templates, min(shots, len(seeds)), seed)
    num_made = first = 0
    while num_made < count and first < MAX_TRIES * count:
        size = min(teacher.batch_size, 2 * (count - num_made), MAX_TRIES * count - first)
        numbers = range(first, first + size)
        first += size
        written = teacher.write(asking.request("input", number) for number in numbers)
        inputs: dict[int, str] = {}
        for number, texts in zip(numbers, written, strict=True):
            text = _complete(texts, "input", dropped)
            if text is not None and copies.add(text.text):
                inputs[number] = text.text.strip()
            elif text is not None:
                dropped["near-copy of another input"] += 1
        written = teacher.write(asking.request("output", number, text) for number, text in inputs.items())
        for (number, input_text), texts in zip(inputs.items(), written, strict=True):
            output = _complete(texts, "output", dropped)
            if output is not None and num_made < count:
                num_made += 1
                yield {**output_fields(output), "input": input_text, "output": output.text.strip(), "seeds": asking.drawn(number)}


class _Asking:
    """The requests of new input number i."""

    def __init__(self, seeds: Sequence[Pair], params: SamplingParams, templates: AskTemplates, shots: int, seed: int) -> None:
        self._seeds, self._templates, self._shots, self._seed = seeds, templates, shots, seed
        self._params = {name: params.replace(n=1, stop=(*params.stop, *stop)) for name, stop in _STOPS.items()}

    def drawn(self, number: int) -> list[int]:
        """Return the indices of the seeds that are shown."""
        return random.Random(derived_seed(self._seed, "draw", number)).sample(range(len(self._seeds)), self._shots)

    def request(self, name: str, number: int, input_text: str = "") -> TextRequest:
        shown = [self._seeds[index] for index in self.drawn(number)]
        examples = [{"input": pair.input_text, "output": pair.output} for pair in shown]
        prompt = self._templates.render(name, {"examples": examples, "input": input_text})
        return TextRequest(prompt, self._params[name].replace(seed=derived_seed(self._seed, name, number)))


def _complete(texts: Sequence[TeacherText], name: str, dropped: Counter[str]) -> TeacherText | None:
    """Return the text, unless it is missing, blank or cut."""
    if not texts:
        dropped[f"prompt of an {name} too long for the context"] += 1
    elif texts[0].is_cut:
        dropped[f"{name} cut at max_tokens"] += 1
    elif not texts[0].text.strip():
        dropped[f"blank {name}"] += 1
    else:
        return texts[0]
    return None
