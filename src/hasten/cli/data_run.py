"""What the commands of ``hasten data`` share: options, and a run that keeps the teacher's answers."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.engine_options import ENGINE, MODEL_HELP, load_llm
from hasten.cli.options import OptionValues
from hasten.cli.sampling_options import SAMPLING, merge_settings
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from hasten.compress.distill.data.recorded_teacher import RecordedTeacher
    from hasten.entrypoints.llm import LLM

DEFAULT_MAX_TOKENS = 512
# The answers are kept in a file, and no request is before another one.
_OTHER_OPTIONS = ("scheduling_policy", "priority_seconds", "max_pins", "max_pinned_share")
TEACHER_ENGINE = ENGINE.without((*(name for name in ENGINE.help if name.startswith("result_cache")), *_OTHER_OPTIONS))
_NOT_SAMPLED = ("logprobs", "beam_width", "early_stopping", "length_penalty")
_HELP = {
    "max_tokens": f"Maximum output tokens; {DEFAULT_MAX_TOKENS} if left out.",
    "seed": "Random seed, 0 if left out; the same command makes the same data.",
}
DATA_SAMPLING = dataclasses.replace(
    SAMPLING, help={**SAMPLING.without(_NOT_SAMPLED).help, **_HELP}, spellings={"n": ("--samples",)}
)

TEACHER_HELP = f"{MODEL_HELP[:-1]}; or MODEL@URL of an OpenAI-compatible endpoint."
Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help=TEACHER_HELP, show_default=False)]
Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE", help="A new JSONL file; FILE.partial has the answers until it is complete.", show_default=False
    ),
]
PROMPTS_HELP = 'Prompts: one per line, or in .jsonl one {"input": ...}, {"prompt": ...} or {"messages": [...]} per line.'
Chat = Annotated[bool, typer.Option("--chat", help="Ask in a user's message, rendered by the chat template.")]
TemplateFile = Annotated[
    Path | None,
    typer.Option("--template", metavar="FILE", help="A YAML file with templates that replace built-in ones of the same names."),
]


class DataRun:
    """A context in which ``out`` is made. ``settings`` are the options of the command, as plain data.

    The same command goes on after a kill. Raises ``InvalidOption`` if ``out`` exists, or if an unfinished run has other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], num_requests: int) -> None:
        from hasten.compress.distill.data.data_file import DataFile

        self._file, self._settings, self._num_requests = DataFile(out), settings, num_requests
        self._stack, self._num_done = ExitStack(), 0
        self.dropped: Counter[str] = Counter()  # what no record was made of, by reason

    def __enter__(self) -> DataRun:
        from hasten.entrypoints.progress import step_bar

        self._answers = self._stack.enter_context(self._file.open(self._settings))
        self._progress = self._stack.enter_context(step_bar("asking"))
        if len(self._answers):
            print(f"going on with {len(self._answers):,} answers of an earlier run", file=sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            print("stopped; the same command goes on", file=sys.stderr)
        self._stack.__exit__(kind, error, trace)

    @contextmanager
    def teacher(self, model: str, engine: OptionValues, *, chat: bool) -> Iterator[tuple[LLM | None, RecordedTeacher]]:
        """Yield a loaded model, None for an endpoint, and the teacher that it is. Print its speed at the end."""
        from hasten.compress.distill.data.endpoint_teacher import EndpointTeacher, split_endpoint
        from hasten.compress.distill.data.model_teacher import ModelTeacher
        from hasten.compress.distill.data.recorded_teacher import RecordedTeacher

        found = split_endpoint(model)
        if found is not None:
            if others := engine.keys() - {"max_num_seqs"}:
                got = ", ".join(sorted(others))
                raise InvalidOption("an endpoint has an engine of its own", got=got, allowed="--max-num-seqs, requests at a time")
            endpoint = EndpointTeacher(found[1], found[0], num_connections=EngineOptions(**engine).max_num_seqs)
            yield None, RecordedTeacher(endpoint, self._answers, self._count)
            print(endpoint.figures, file=sys.stderr)
            return
        with load_llm(model, engine) as llm:
            teacher = ModelTeacher(llm, chat=chat, max_num_seqs=EngineOptions(**engine).max_num_seqs)
            yield llm, RecordedTeacher(teacher, self._answers, self._count)
            print(teacher.figures, file=sys.stderr)

    def publish(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the records, which ask the teacher, and give the file its name."""
        try:
            count = self._file.publish(records, self._answers)
        finally:
            for reason, number in (+self.dropped).items():
                print(f"dropped {number:,}: {reason}", file=sys.stderr)
        print(f"{count:,} records written to {self._file.path}", file=sys.stderr)

    def _count(self, num_new: int) -> None:
        self._num_done += num_new
        self._progress(self._num_done, max(self._num_done, self._num_requests))


def merged_params(llm: LLM | None, preset: str | None, sampling: OptionValues, from_file: OptionValues) -> SamplingParams:
    """Return the sampling settings of a teacher, with a limit of tokens in any case."""
    defaults = SamplingParams() if llm is None else llm.default_sampling_params()
    params = merge_settings(defaults, preset, sampling, from_file).params
    return params if params.max_tokens is not None else params.replace(max_tokens=DEFAULT_MAX_TOKENS)


def file_digest(file: Path | None) -> str | None:
    """Return a digest of a file's bytes, to know it again; None without a file. Raises ``InvalidOption``."""
    from hasten.training.documents import file_digest as digest

    return None if file is None else digest(file)[:16]
