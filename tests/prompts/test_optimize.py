"""``optimize``: the order of its steps, what a killed run keeps, and what a report says."""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from tests.exhaustive import EXHAUSTIVE
from tests.prompts.conftest import MODULES

from hasten import LLM
from hasten.checkpoints.formats.soft_prompt import TrainedFor, write_soft_prompt
from hasten.core.errors import HastenError, InvalidOption, PromptTooLong
from hasten.core.field_type import Range
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts import optimization_folder, optimize, optimizer
from hasten.prompts.evaluate import default_params, evaluate
from hasten.prompts.held_out_ledger import HeldOutLedger
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import Attempt, ItemScore, open_metric
from hasten.prompts.metrics.log_likelihood import LogLikelihood
from hasten.prompts.optimization_folder import OptimizationFolder
from hasten.prompts.optimization_report import OptimizationReport
from hasten.prompts.optimize import Optimization, input_template
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import HeldOut, PromptItem, PromptTask
from hasten.prompts.template import PromptTemplate

BETTER = TemplateVariant("better", PromptTemplate("better", "import {{ input }}\nimport {{ input }}\nimport"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StubOptions:
    strength: Annotated[int, Range(0, 9)] = 1


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Workbench]:
    """Install a method that compares two prompts on the validation items, and return its calls."""
    made: list[Workbench] = []

    def stub(bench: Workbench, initial: TemplateVariant, options: StubOptions) -> Candidate:
        made.append(bench)
        (bench.folder / "steps.txt").write_text("of the method")
        scores = [bench.evaluate(variant, bench.validation).mean for variant in (initial, BETTER)]
        return Candidate(BETTER if scores[1] > scores[0] else initial)

    method = types.SimpleNamespace(OPTIONS=StubOptions, optimize=stub)
    for module in (optimizer, optimize):
        monkeypatch.setattr(module, "find_optimizer", lambda name: method)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    return made


def task_of(number: int = 24) -> PromptTask:
    inputs = [f"{name}{index}" for name in MODULES for index in range(10)][:number]
    return PromptTask(Path("task"), tuple(PromptItem(line, {"input": text}, (text,)) for line, text in enumerate(inputs, 1)))


def wanted(**changes: Any) -> Optimization:
    values: dict[str, Any] = {
        "task": task_of(),
        "initial": TemplateVariant("plain", PromptTemplate("plain", "{{ input }}\nimport")),
        "method": "stub",
        "options": StubOptions(),
        "metric": open_metric("log_likelihood"),
        "task_options": TaskOptions(max_tokens=4),
    }
    return Optimization(**{**values, **changes})


def run(llm: LLM, out: Path, **changes: Any) -> OptimizationReport:
    return optimize.optimize(llm, wanted(**changes), out)


def without_seconds(report: OptimizationReport) -> dict[str, Any]:
    found = report.as_dict()
    return {**found, **{name: {**found[name], "prompt_seconds": 0} for name in ("initial", "best")}}


def test_the_report_is_that_of_plain_evaluations(llm: LLM, tmp_path: Path) -> None:
    report, chosen = run(llm, tmp_path / "out"), wanted()
    split = chosen.split()
    items, params = split.held_out.use(), default_params(4)
    for figures, variant in ((report.initial, chosen.initial), (report.best, BETTER)):
        validation = evaluate(llm, variant, split.validation, chosen.metric, params)
        held_out = evaluate(llm, variant, items, chosen.metric, params)
        assert (figures.validation, figures.validation_interval) == (validation.mean, validation.interval)
        assert (figures.held_out, figures.held_out_interval) == (held_out.mean, held_out.interval)
        assert figures.prompt_tokens == held_out.mean_prompt_tokens and figures.prompt_seconds > 0
    summary = report.summary
    assert (
        summary.difference == pytest.approx(report.best.held_out - report.initial.held_out)
        and summary.difference > 0
        and summary.is_changed
    )
    assert (summary.num_train, summary.num_validation, summary.num_held_out, summary.num_earlier_reads) == (12, 6, 6, 0)
    assert 0 < summary.optimization_tokens < summary.report_tokens  # 2 × 6 items, and 4 × 6


def test_the_method_never_gets_the_held_out_items(llm: LLM, tmp_path: Path, calls: list[Workbench]) -> None:
    run(llm, tmp_path / "out")
    (bench,) = calls
    held_out = {item.line for item in wanted().split().held_out.use()}
    assert held_out and not held_out & {item.line for item in (*bench.train, *bench.validation)}


def test_the_held_out_items_are_read_once_after_the_choice_stands(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stood, use = list[bool](), HeldOut.use
    monkeypatch.setattr(HeldOut, "use", lambda self: stood.append((tmp_path / "out" / "chosen.json").is_file()) or use(self))
    run(llm, tmp_path / "out")
    run(llm, tmp_path / "out")
    assert stood == [True]


def test_a_finished_folder_gives_its_report_and_computes_nothing(llm: LLM, tmp_path: Path, calls: list[Workbench]) -> None:
    first = run(llm, tmp_path / "out")
    num_steps = llm.stats()["engine"]["steps"]
    assert run(llm, tmp_path / "out") == first and len(calls) == 1 and llm.stats()["engine"]["steps"] == num_steps > 0
    assert sorted(os.listdir(tmp_path / "out")) == ["chosen.json", "prompt.yaml", "report.json", "settings.json"]


def test_earlier_reads_of_the_same_held_out_items_are_counted(llm: LLM, tmp_path: Path) -> None:
    found = [run(llm, tmp_path / str(number), options=StubOptions(strength=number)).summary for number in range(3)]
    assert [summary.num_earlier_reads for summary in found] == [0, 1, 2]
    assert run(llm, tmp_path / "other", seed=7).summary.num_earlier_reads == 0
    assert run(llm, tmp_path / "0", options=StubOptions(strength=0)).summary.num_earlier_reads == 0


def with_long_held_out_item(num_words: int) -> dict[str, Any]:
    """Return a task whose first item has so many words, and a seed that holds it out."""
    first, *others = task_of().items
    task = dataclasses.replace(task_of(), items=(dataclasses.replace(first, variables={"input": "x " * num_words}), *others))
    seed = next(seed for seed in range(99) if first.line in {item.line for item in task.split(seed).held_out.use()})
    return {"task": task, "seed": seed}


def test_what_is_chosen_fits_the_longest_held_out_item(llm: LLM, tmp_path: Path, calls: list[Workbench]) -> None:
    room = llm.describe()["max_model_len"] - len(llm.tokenizer.encode("x\nimport"))
    with pytest.raises(PromptTooLong, match="line 1 of the task, variant plain"):
        run(llm, tmp_path / "0", **with_long_held_out_item(room + 8))
    assert not calls, "the method had run before"
    with pytest.raises(PromptTooLong, match="variant better"):  # which has more words, on a short item
        run(llm, tmp_path / "1", **with_long_held_out_item(room - 2))
    assert calls[0].num_reserved > 0 and not (tmp_path / "1" / "chosen.json").exists()


def test_a_run_that_fails_on_held_out_items_has_read_them(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, score = list[bool](), LogLikelihood.score
    use = HeldOut.use
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "use", lambda self: read.append(True) or use(self))

        def fail(self: LogLikelihood, attempt: Attempt, llm: LLM) -> ItemScore:
            if read:
                raise HastenError("the judge is busy")
            return score(self, attempt, llm)

        patch.setattr(LogLikelihood, "score", fail)
        with pytest.raises(HastenError, match="the judge is busy"):
            run(llm, tmp_path / "0")
    assert run(llm, tmp_path / "1", options=StubOptions(strength=0)).summary.num_earlier_reads == 1


class Killed(BaseException):
    """Stands for SIGKILL at one point of a run."""


POINTS: list[tuple[Any, str]] = [
    (RunFile, "add"),
    (OptimizationFolder, "_write"),
    (HeldOut, "use"),
    (HeldOutLedger, "record"),
    (OptimizationFolder, "_remove_state"),
    (optimization_folder, "template_yaml"),
    (optimize, "prompt_seconds"),
]


def watch(patch: pytest.MonkeyPatch, event: Callable[[], None]) -> None:
    """Call ``event`` before and after each function of ``POINTS``."""
    for owner, name in POINTS:
        function = getattr(owner, name)

        def watched(*given: Any, function: Callable[..., Any] = function, **named: Any) -> Any:
            event()
            result = function(*given, **named)
            event()
            return result

        patch.setattr(owner, name, watched)


def kills(number: int) -> Iterator[Callable[[], None]]:
    """Yield an event that raises at its last call, for each number of calls; for every third one in CI."""
    for last in range(0, number, 1 if EXHAUSTIVE else 3):
        left = iter(range(last))

        def event(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        yield event


def test_a_run_that_is_killed_anywhere_ends_as_one_that_is_not(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, points = task_of(8), list[int]()
    with monkeypatch.context() as patch:
        watch(patch, lambda: points.append(1))
        expected = without_seconds(run(llm, tmp_path / "expected", task=task))
    assert len(points) > 30
    for number, event in enumerate(kills(len(points))):
        out = tmp_path / str(number)
        monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / f"cache{number}"))
        with monkeypatch.context() as patch:
            watch(patch, event)
            with pytest.raises(Killed):
                run(llm, out, task=task)
        chosen = (out / "chosen.json").read_bytes() if (out / "chosen.json").exists() else None
        assert without_seconds(run(llm, out, task=task)) == expected, number
        assert chosen in (None, (out / "chosen.json").read_bytes()), "the choice was made again"
        assert (out / "prompt.yaml").read_text() == (tmp_path / "expected" / "prompt.yaml").read_text()
        assert not (out / "state").exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"task": task_of(23)}, "task"),
        ({"method": "other"}, "method"),
        ({"options": StubOptions(strength=2)}, "stub.strength was 1 and is 2"),
        ({"initial": input_template(["input"])}, "template"),
        ({"metric": open_metric("f1")}, "metric"),
        ({"task_options": TaskOptions(max_tokens=5)}, "max_tokens was 4 and is 5"),
        ({"task_options": TaskOptions(max_tokens=4, chat=True)}, "chat was False and is True"),
        ({"fractions": (0.25, 0.5, 0.25)}, "fractions"),
        ({"seed": 1}, "seed was 0 and is 1"),
    ],
)
def test_a_folder_with_other_settings_is_refused_by_name(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    folder = OptimizationFolder(tmp_path / "out")
    folder.open(wanted().settings())
    folder.prepare(wanted().settings())
    with pytest.raises(InvalidOption, match=f"holds an optimisation with other settings: got .*{name}"):
        folder.prepare(wanted(**change).settings())


def test_another_model_is_refused(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(llm, tmp_path / "out")
    settings = optimize.model_settings(llm)
    monkeypatch.setattr(optimize, "model_settings", lambda llm: {**settings, "model": "another"})
    with pytest.raises(InvalidOption, match=r"other settings: got model was '.*' and is 'another'"):
        run(llm, tmp_path / "out")


def test_a_task_with_an_answer_changed_is_another_task(tmp_path: Path) -> None:
    first, *rest = task_of().items
    changed = PromptTask(Path("task"), (dataclasses.replace(first, references=("other",)), *rest))
    assert wanted(task=changed).settings()["task"] != wanted().settings()["task"]
    assert wanted(task=PromptTask(Path("x"), task_of().items[::-1])).settings() == wanted().settings()


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.5, 0.6, 0.2), (1.0,)])
def test_fractions_without_validation_or_held_out_items_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InvalidOption, match="fractions"):
        wanted(fractions=fractions)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("chosen.json", "{}", "chosen.json is damaged"),
        ("chosen.json", "[", "chosen.json is damaged"),
        ("chosen.json", json.dumps({"variant": "v", "run_id": "../../x", "num_tokens": 1}), "chosen.json is damaged"),
        ("prompt.yaml", "name: x\ntext: another {{ input }}\n", "was changed after it was chosen"),
        ("prompt.yaml", "- 1", "prompt.yaml"),
        ("settings.json", "no JSON", "settings.json is damaged"),
        ("report.json", "{}", "report.json is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, words: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "use", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(llm, out)
    (out / name).write_text(content)
    with pytest.raises(HastenError, match=words) as caught:
        run(llm, out)
    assert "\n" not in str(caught.value)


def test_a_soft_prompt_is_kept_with_its_digest(llm: LLM, tmp_path: Path) -> None:
    trained_for = TrainedFor(base_model="demo", num_layers=8, num_attention_heads=4)
    embeddings_NE = torch.arange(2 * 256, dtype=torch.float32, device="cpu").reshape(2, 256) / 512
    write_soft_prompt(tmp_path / "trained", embeddings_NE, trained_for)
    folder = OptimizationFolder(tmp_path / "out")
    folder.open({})
    soft_prompt = llm.load_soft_prompt(tmp_path / "trained")
    (folder.path / "soft_prompt").mkdir()
    (folder.path / "soft_prompt" / "half").write_text("of a run that was killed before its choice stood")
    choice = folder.choose(Candidate(BETTER, soft_prompt), 7)
    assert sorted(os.listdir(folder.path / "soft_prompt")) == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "trained" / "adapter_model.safetensors").unlink()
    found = folder.chosen(llm)
    assert found is not None and found.candidate.soft_prompt is not None
    assert (found.candidate.variant, found.candidate.soft_prompt.digest) == (BETTER, soft_prompt.digest)
    assert (found.num_tokens, found.run_id) == (7, choice.run_id)
    write_soft_prompt(tmp_path / "out" / "soft_prompt", embeddings_NE + 1, trained_for)
    with pytest.raises(InvalidOption, match="changed after it was chosen"):
        folder.chosen(llm)


def test_a_folder_of_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidOption, match="not an empty folder"):
        OptimizationFolder(tmp_path).open({})
    with pytest.raises(InvalidOption, match="is no folder"):
        OptimizationFolder(tmp_path / "mine.txt").prepare({})
    for name in ("/proc/none", str(tmp_path / ("x" * 300)), "a\0b", str(tmp_path / "mine.txt" / "below")):
        with pytest.raises(InvalidOption, match="cannot be made"):
            OptimizationFolder(Path(name)).prepare({})
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_file_that_a_killed_process_left_half_written_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".settings.json.17.4.partial").write_text('{"ha')
    OptimizationFolder(tmp_path).open({"a": 1})
    OptimizationFolder(tmp_path).prepare({"a": 1})


def test_two_processes_do_not_share_a_folder(llm: LLM, tmp_path: Path) -> None:
    with RunFile(tmp_path / "out" / "state" / "results.jsonl"):
        (tmp_path / "out" / "settings.json").write_text(json.dumps({**wanted().settings(), **optimize.model_settings(llm)}))
        with pytest.raises(InvalidOption, match="another process uses"):
            run(llm, tmp_path / "out")


def test_the_input_template_has_every_variable() -> None:
    assert input_template(["input"]).render({"input": "x"}) == "x"
    assert input_template(["city", "year"]).render({"city": "Rome", "year": "1"}) == "city: Rome\nyear: 1"
