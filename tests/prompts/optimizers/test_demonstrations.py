"""The method ``demonstrations``: what it shows, what it counts, and what it is worth on held-out items."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.prompts.getter_task import getter_task

from hasten import LLM
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluate import default_params, evaluate
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import open_metric
from hasten.prompts.optimization_report import OptimizationReport
from hasten.prompts.optimize import Optimization, input_template, optimize
from hasten.prompts.optimizer import Workbench
from hasten.prompts.optimizers import demonstrations
from hasten.prompts.optimizers.demonstrations import Demonstration, DemonstrationLayout, DemonstrationOptions
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem, PromptTask
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import read_templates

OPTIONS = DemonstrationOptions(shots=2, num_candidates=6)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))


def optimized(llm: LLM, task: PromptTask, out: Path) -> OptimizationReport:
    wanted = Optimization(
        task=task,
        initial=input_template(task.variables),
        method="demonstrations",
        options=OPTIONS,
        metric=open_metric("exact_match"),
        task_options=TaskOptions(max_tokens=16),
    )
    return optimize(llm, wanted, out)


def test_demonstrations_raise_the_held_out_score(llm: LLM, tmp_path: Path) -> None:
    report = optimized(llm, getter_task(tmp_path / "task.jsonl", 200), tmp_path / "out")
    interval = report.summary.difference_interval
    assert interval is not None and interval[0] > 0 and report.summary.is_real
    assert report.best.held_out > report.initial.held_out and report.best.prompt_tokens > report.initial.prompt_tokens
    (template,) = read_templates(tmp_path / "out" / "prompt.yaml")
    assert template.variables == ("input",) and template.defaults["demonstrations"].count("Output: return self.") == 2


def test_demonstrations_of_shuffled_outputs_do_not(llm: LLM, tmp_path: Path) -> None:
    """The control: the format is shown as well, but what it takes is not."""
    report = optimized(llm, getter_task(tmp_path / "task.jsonl", 200, are_shuffled=True), tmp_path / "out")
    interval = report.summary.difference_interval
    assert interval is not None and interval[0] <= 0 <= interval[1] < 0.1 and not report.summary.is_real


def bench(llm: LLM, folder: Path, *, metric: str = "exact_match", number: int = 40, max_tokens: int = 16) -> Workbench:
    split = getter_task(folder / "task.jsonl", number).split()
    return Workbench(
        llm=llm,
        train=split.train,
        validation=split.validation,
        metric=open_metric(metric),
        options=TaskOptions(max_tokens=max_tokens),
        run_file=RunFile(folder / "results.jsonl"),
        folder=folder,
        seed=0,
        on_log=lambda line: None,
    )


INITIAL = input_template(["input"])


def test_the_best_of_all_prompts_by_the_validation_items_wins(llm: LLM, tmp_path: Path) -> None:
    """Brute force over every prompt that was asked, on all validation items."""
    desk = bench(llm, tmp_path)
    asked: dict[str, TemplateVariant] = {}

    class Recorder(Workbench):
        def evaluate(self, variant: TemplateVariant, items: Any) -> Any:
            asked.setdefault(variant.digest, variant)
            return super().evaluate(variant, items)

    watched = Recorder(**{field.name: getattr(desk, field.name) for field in dataclasses.fields(Workbench)})
    best = demonstrations.optimize(watched, INITIAL, OPTIONS)
    params = default_params(desk.options.max_tokens)
    # The set that finds right outputs is one of those that are compared, so it is no further one.
    means = {key: evaluate(llm, variant, desk.validation, desk.metric, params).mean for key, variant in asked.items()}
    assert len(means) == 1 + OPTIONS.num_candidates and means[best.variant.digest] == max(means.values()) > means[INITIAL.digest]
    assert watched.num_tokens > 0


def test_own_outputs_are_shown_where_the_metric_calls_them_right(llm: LLM, tmp_path: Path) -> None:
    """A case-insensitive metric calls an output right that is not the reference."""
    desk = bench(llm, tmp_path, metric="exact_match:ignore_case", number=80)
    loud = tuple(dataclasses.replace(item, references=(item.references[0].upper(),)) for item in desk.train)
    quiet = {item.references[0] for item in desk.train}
    desk.train = loud
    search = demonstrations._Search(desk, DemonstrationLayout.of(INITIAL.template), OPTIONS)
    teacher = [Demonstration(item, item.references[0].lower()) for item in loud[:2]]
    right = search._right_outputs(teacher, [Demonstration(item, item.references[0]) for item in loud])
    assert right and all(one.output in quiet and one.item not in loud[:2] for one in right)
    assert all(one.output.upper() == one.item.references[0] for one in right)


def test_a_metric_that_calls_nothing_right_shows_references(llm: LLM, tmp_path: Path) -> None:
    desk = bench(llm, tmp_path, metric="log_likelihood")
    best = demonstrations.optimize(desk, INITIAL, OPTIONS)
    shown = best.variant.template.defaults["demonstrations"].split("\n\n")
    expected = {f"Input: {item.input_text}\nOutput: {item.references[0]}" for item in desk.train}
    assert len(shown) == 2 and set(shown) <= expected


def test_an_initial_prompt_that_is_best_stays(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = bench(llm, tmp_path, number=16)
    lines = [json.loads(line) for line in (tmp_path / "task.jsonl").read_text().splitlines()]
    outputs = {line["input"]: line["output"] for line in lines}

    def evaluate_with_an_oracle(self: Workbench, variant: TemplateVariant, items: Any) -> Any:
        wrong = evaluate(llm, variant, items, self.metric)
        score = float(variant is INITIAL)
        results = tuple(
            dataclasses.replace(result, score=score, output=outputs[item.input_text])
            for item, result in zip(items, wrong.results, strict=True)
        )
        return dataclasses.replace(wrong, results=results)

    monkeypatch.setattr(Workbench, "evaluate", evaluate_with_an_oracle)
    assert demonstrations.optimize(desk, INITIAL, OPTIONS).variant is INITIAL


ITEM = PromptItem(1, {"input": "{{ a }}"}, ("{% b %}",))


def text_of(template: PromptTemplate, *items: PromptItem) -> str:
    shown = [Demonstration(item, item.references[0]) for item in items]
    return DemonstrationLayout.of(template).variant(1, shown).render({"input": "query", "city": "Rome"})


def test_a_prompt_of_variables_alone_gets_the_labels_of_few_shot() -> None:
    examples = [{"input": "{{ a }}", "output": "{% b %}"}]
    for name, template in (("few_shot", INITIAL.template), ("few_shot_zh", PromptTemplate("x", "{{ input }}", language="zh"))):
        expected = TemplateLibrary().find(name).render({"examples": examples, "input": "query"})
        assert text_of(template, ITEM) == expected.rstrip("\n")


def test_a_prompt_with_text_is_repeated_with_the_answer() -> None:
    template = PromptTemplate("x", "Q: {{ input }} {{ mark }}\nA:", defaults={"mark": "?"}, system="Be brief.")
    assert text_of(template, ITEM, ITEM) == "Be brief.\n\nQ: {{ a }} ?\nA: {% b %}\n\nQ: {{ a }} ?\nA: {% b %}\n\nQ: query ?\nA:"
    item = PromptItem(1, {"input": "x", "city": "Oslo"}, ("y",))
    template = input_template(["input", "city"]).template
    assert text_of(template, item) == "input: x\ncity: Oslo\nOutput: y\n\ninput: query\ncity: Rome\nOutput:"


def test_balanced_sets_have_every_label(llm: LLM, tmp_path: Path) -> None:
    desk = bench(llm, tmp_path, number=16)
    labels = ["a", "a", "a", "a", "a", "b", "b", "b"]
    pool = [Demonstration(item, label) for item, label in zip(desk.train, labels, strict=True)]
    search = demonstrations._Search(desk, DemonstrationLayout.of(INITIAL.template), DemonstrationOptions(shots=4))
    drawn = [sorted(one.output for one in search._drawn(pool, number)) for number in range(40)]
    assert all(labels == ["a", "a", "b", "b"] for labels in drawn[1::2]) and len({tuple(labels) for labels in drawn[::2]}) > 1
    assert len(set(map(tuple, drawn))) > 1 and all(len(labels) == 4 for labels in drawn)


def test_sets_that_do_not_fit_the_context_are_refused_before_they_run(llm: LLM, tmp_path: Path) -> None:
    desk = bench(llm, tmp_path, number=80)
    with pytest.raises(PromptTooLong, match=r"shots=40.*Lower shots"):
        demonstrations.optimize(desk, INITIAL, DemonstrationOptions(shots=40, num_candidates=2))
    assert desk.num_tokens == 0
    with pytest.raises(InvalidOption, match="too few train items"):
        demonstrations.optimize(desk, INITIAL, DemonstrationOptions(shots=41))


def test_the_item_of_the_most_tokens_has_to_fit(llm: LLM, tmp_path: Path) -> None:
    """It is not the one of the most characters. Held-out inputs that are longer still have room."""
    desk = bench(llm, tmp_path)
    spaces, symbols = (PromptItem(line, {"input": text}, ("x",)) for line, text in ((77, " " * 60), (78, "\u2603" * 30)))
    desk.validation = (spaces, symbols, *desk.validation)
    search = demonstrations._Search(desk, DemonstrationLayout.of(INITIAL.template), OPTIONS)
    variant = search.layout.variant(1, [Demonstration(desk.train[0], "x")])
    lengths = {item.line: len(llm.tokenizer.encode(variant.render(item.variables))) for item in desk.validation}
    assert search.longest == symbols and lengths[78] == max(lengths.values()) > lengths[77] + 30
    desk.num_reserved = llm.describe()["max_model_len"] - lengths[78] - desk.options.max_tokens
    assert search._fits(variant)
    desk.num_reserved += 1
    assert not search._fits(variant)


@pytest.mark.parametrize("values", [{"shots": 0}, {"num_candidates": 0}, {"shots": math.nan}, {"num_candidates": "4"}])
def test_options_out_of_range_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(values))):
        DemonstrationOptions(**values)
