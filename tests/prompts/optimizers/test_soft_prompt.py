"""Soft prompts of a task: they are better on items that they have not seen, and learn nothing from shuffled outputs."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor

from hasten import LLM, SamplingParams
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluate import default_params, evaluate
from hasten.prompts.evaluation import score_difference
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import Attempt, ItemScore, open_metric
from hasten.prompts.metrics.log_likelihood import LogLikelihood
from hasten.prompts.optimizer import Workbench, find_optimizer
from hasten.prompts.optimizers import soft_prompt as method
from hasten.prompts.optimizers.soft_prompt import SoftPromptOptions, optimize
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem, TaskSplit, read_prompt_task
from hasten.prompts.template import PromptTemplate
from hasten.training.corpus import Batch
from hasten.training.examples import Examples
from hasten.training.lm_head_loss import Labels
from hasten.training.soft_prompt_task import SoftPromptTask

PLAIN = TemplateVariant("plain", PromptTemplate("plain", "{{ input }}"))
SHORT = SoftPromptOptions(virtual_tokens=4, steps=6, batch=3)


def split() -> TaskSplit:
    return read_prompt_task(Path("next_identifier")).split(seed=0)


@contextmanager
def workbench(
    llm: LLM,
    folder: Path,
    train: tuple[PromptItem, ...] | None = None,
    *,
    metric: str = "exact_match",
    chat: bool = False,
    on_log: Callable[[str], None] = lambda message: None,
) -> Iterator[Workbench]:
    """Yield the items of a task that ships, all for training or some, and four for validation."""
    parts, options = split(), TaskOptions(max_tokens=6, chat=chat)
    with RunFile(folder / "run.jsonl") as run_file:
        yield Workbench(
            llm=llm,
            train=train or parts.train,
            validation=parts.validation[:4],
            metric=open_metric(metric),
            options=options,
            run_file=run_file,
            folder=folder,
            seed=3,
            on_log=on_log,
        )


def shuffled(items: tuple[PromptItem, ...]) -> tuple[PromptItem, ...]:
    outputs = [item.references for item in items]
    random.Random(5).shuffle(outputs)
    return tuple(replace(item, references=output) for item, output in zip(items, outputs, strict=True))


def test_the_held_out_score_rises_and_shuffled_outputs_teach_nothing(llm: LLM, tmp_path: Path) -> None:
    parts, options = split(), SoftPromptOptions(virtual_tokens=8, steps=40)
    held_out, metric, params = parts.held_out.use()[:80], open_metric("exact_match"), default_params(6)
    found = {}
    for name in ("task", "control"):
        with workbench(llm, tmp_path / name) as bench:
            if name == "control":
                bench.train, bench.validation = shuffled(bench.train), shuffled(bench.validation)
            optimize(bench, PLAIN, options)
        (folder,) = tmp_path.glob(f"{name}/soft-prompt-*")  # of the control too, which validation may not choose
        soft_prompt = llm.load_soft_prompt(folder)
        found[name] = evaluate(llm, PLAIN, held_out, metric, params, soft_prompt=soft_prompt)
    without = evaluate(llm, PLAIN, held_out, metric, params)
    gain, control = (score_difference(found[name], without).interval for name in ("task", "control"))
    assert gain is not None and control is not None
    assert gain[0] > 0 >= control[0]


def test_a_stopped_training_goes_on_and_a_finished_one_is_not_repeated(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = split().train[:12]
    monkeypatch.setattr(method, "SAVE_EVERY", 0.0)
    with workbench(llm, tmp_path / "whole", train, metric="log_likelihood") as bench:
        whole, num_tokens = optimize(bench, PLAIN, SHORT), bench.num_tokens

    def interrupt(message: str) -> None:
        if message.startswith("step 4"):
            raise KeyboardInterrupt

    with (
        workbench(llm, tmp_path / "cut", train, metric="log_likelihood", on_log=interrupt) as bench,
        pytest.raises(KeyboardInterrupt),
    ):
        optimize(bench, PLAIN, SHORT)
    messages: list[str] = []
    with workbench(llm, tmp_path / "cut", train, metric="log_likelihood", on_log=messages.append) as bench:
        again = optimize(bench, PLAIN, SHORT)
        assert any(message.startswith("resuming after step 3") for message in messages)
        assert bench.num_tokens == num_tokens
    assert whole.soft_prompt is not None and again.soft_prompt is not None
    assert again.soft_prompt.digest == whole.soft_prompt.digest
    messages.clear()
    with workbench(llm, tmp_path / "cut", train, metric="log_likelihood", on_log=messages.append) as bench:
        assert optimize(bench, PLAIN, SHORT) == again and bench.num_tokens == num_tokens
        assert len(messages) == 1 and messages[0].startswith("validation: ")
    # Whatever the result depends on trains another one.
    with workbench(llm, tmp_path / "cut", train[:11], metric="log_likelihood") as bench:
        for options in (SHORT, replace(SHORT, learning_rate=0.01)):
            other = optimize(bench, PLAIN, options).soft_prompt
            assert other is not None and other.digest != again.soft_prompt.digest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_waits_until_the_step_is_saved(number: signal.Signals, llm: LLM, tmp_path: Path) -> None:
    """SIGUSR1 stands for a signal whose handler raises nothing."""
    train, messages, progress = split().train[:12], list[str](), list[tuple[int, int]]()

    def send(message: str) -> None:
        messages.append(message)
        if message.startswith("step 4"):
            os.kill(os.getpid(), number)

    previous = signal.signal(signal.SIGUSR1, lambda number, frame: messages.append("handled"))
    try:
        with workbench(llm, tmp_path, train, metric="log_likelihood", on_log=send) as bench:
            bench.on_progress = lambda num_done, total: progress.append((num_done, total))
            stops = pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else nullcontext()
            with stops:
                optimize(bench, PLAIN, SHORT)
            if number == signal.SIGINT:
                optimize(bench, PLAIN, SHORT)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    steps = [int(message.split()[1]) for message in messages if message.startswith("step ")]
    assert steps == [1, 2, 3, 4, 5, 6] and progress == [(step, 6) for step in steps]
    assert any(message.startswith("resuming after step 4") for message in messages)
    assert ("handled" in messages) == (number == signal.SIGUSR1)


def test_the_tokens_are_those_that_pass_through_the_model(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    run = SoftPromptTask._run

    def count(self: SoftPromptTask, batch: Batch, prompt_PE: Tensor) -> tuple[Tensor, Labels]:
        nonlocal computed
        computed += batch.ids_BS.numel() + len(batch.ids_BS) * len(prompt_PE)
        return run(self, batch, prompt_PE)

    monkeypatch.setattr(SoftPromptTask, "_run", count)
    with workbench(llm, tmp_path, split().train[:12]) as bench:
        without = bench.evaluate(PLAIN, bench.validation).num_tokens
        bench.num_tokens = 0
        found = optimize(bench, PLAIN, SHORT)
        soft_prompt = found.soft_prompt or llm.load_soft_prompt(next(tmp_path.glob("soft-prompt-*")))
        with_it = evaluate(llm, PLAIN, bench.validation, bench.metric, bench_params(bench), soft_prompt=soft_prompt)
    assert computed > 0 and bench.num_tokens == computed + without + with_it.num_tokens


def bench_params(bench: Workbench) -> SamplingParams:
    return default_params(bench.options.max_tokens)


@dataclass(frozen=True)
class Fixed(LogLikelihood):
    """Gives a prompt after a soft prompt this score, and others 0."""

    value: float = 0.0

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        return ItemScore(0.0 if attempt.soft_prompt is None else self.value)


@pytest.mark.parametrize(("value", "is_kept"), [(-0.5, False), (0.0, False), (0.5, True)])
def test_one_that_is_not_better_is_left_out(value: float, is_kept: bool, llm: LLM, tmp_path: Path) -> None:
    with workbench(llm, tmp_path, split().train[:3]) as bench:
        bench.metric = Fixed(value=value)
        found = optimize(bench, PLAIN, replace(SHORT, steps=1))
    assert found.variant == PLAIN and (found.soft_prompt is not None) == is_kept
    assert len(list(tmp_path.glob("soft-prompt-*"))) == 1


@pytest.mark.parametrize(("metric", "chat"), [("exact_match", False), ("log_likelihood", False), ("exact_match", True)])
def test_examples_are_the_prompts_and_outputs_that_the_metric_asks_for(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, chat: bool
) -> None:
    class Seen(Exception):
        pass

    def train(model: str, examples: Examples, *arguments: object, **options: object) -> None:
        raise Seen(examples)

    monkeypatch.setattr(method, "train_on_examples", train)
    items = (PromptItem(1, {"input": "a ="}, ("b", "c")), PromptItem(2, {"input": "if x:\n"}, ("branch",)))
    with workbench(llm, tmp_path, items, metric=metric, chat=chat) as bench, pytest.raises(Seen) as seen:
        optimize(bench, PLAIN, SHORT)
    examples, tokenizer = seen.value.args[0], llm.tokenizer
    assert examples.counts.tolist() == [2, 4, 0]
    end = [] if metric == "log_likelihood" else [tokenizer.eos_token_id]
    begin = 0
    for index, (text, output) in enumerate((("a =", "b" if chat else " b"), ("if x:\n", "branch"))):
        message = [{"role": "user", "content": text}]
        prompt_ids = list(tokenizer.apply_chat_template(message)) if chat else tokenizer.encode(text)
        stop = int(examples.ends_N[index])
        output_ids = tokenizer.encode(output, add_special_tokens=False)
        assert examples.ids_T[begin:stop].tolist() == [*prompt_ids, *output_ids, *end]
        assert int(examples.num_input_N[index]) == len(prompt_ids)
        begin = stop


def test_what_does_not_fit_is_one_sentence(llm: LLM, tmp_path: Path) -> None:
    assert find_optimizer("soft_prompt").OPTIONS is SoftPromptOptions
    with pytest.raises(InvalidOption, match=r"soft prompt option.*virtual_tokens.*steps"):
        SoftPromptOptions(virtual_tokens=0, steps=0)
    long = PromptItem(77, {"input": "word " * 246}, ("x",))
    with workbench(llm, tmp_path, (long,)) as bench:
        with pytest.raises(PromptTooLong, match=r"line 77 of the task, variant plain: .* got 20 of the soft prompt \+ 24\d \+ 6"):
            optimize(bench, PLAIN, SoftPromptOptions(steps=1))
        assert not list(tmp_path.glob("soft-prompt-*"))


@pytest.mark.parametrize("report", [{}, {"num_sequences": 1, "num_tokens": -1}, {"num_sequences": "1", "num_tokens": 2}])
def test_a_damaged_report_is_one_sentence(report: object, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(report))
    with pytest.raises(InvalidOption, match=r"training.json is damaged"):
        method._num_tokens(tmp_path, 4)
