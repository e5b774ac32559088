"""Every field of every settings class × values of every kind: converted by a rule that is written here, or refused by name."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import fractions
import functools
import math
import pkgutil
import time
import types
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import hasten
from hasten.advise.explanation import Speculation
from hasten.advise.work import Lengths
from hasten.cli.engine_options import ENGINE
from hasten.cli.sampling_options import SAMPLING
from hasten.cli.server_options import SERVE, SERVER, ServeOptions
from hasten.cli.task_options import TASK
from hasten.cli.template_options import TEMPLATE
from hasten.cli.train import KINDS, TRAINING
from hasten.compress.distill.cache_options import CacheOptions
from hasten.compress.distill.selection.options import SelectOptions
from hasten.compress.prune.options import PruneOptions
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.rounding.gptq import Gptq
from hasten.compress.quantize.rounding.hqq import Hqq
from hasten.compress.quantize.transforms.awq import Awq
from hasten.compress.quantize.transforms.smoothquant import SmoothQuant
from hasten.core.check_fields import check_fields
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import MAX_MESSAGE, HastenError, InvalidOption, InvalidRequest, show
from hasten.core.sampling_params import SamplingParams
from hasten.core.structured_outputs import StructuredOutputs
from hasten.entrypoints.task_options import TaskOptions
from hasten.entrypoints.workload import Workload
from hasten.prompts.feedback import Feedback
from hasten.prompts.instruction_search import InstructionOptions
from hasten.prompts.optimization_report import OptimizationSummary, PromptFigures
from hasten.prompts.optimizers.demonstrations import DemonstrationOptions
from hasten.prompts.optimizers.gcg import GcgOptions
from hasten.prompts.optimizers.pez import PezOptions
from hasten.prompts.optimizers.soft_prompt import SoftPromptOptions
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_options import TemplateOptions
from hasten.scheduling.config import SchedulerConfig
from hasten.serving.server_options import ServerOptions
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.options import TrainOptions
from hasten.training.preference.recipes import DpoRecipe, PolicyRecipe, RewardModelRecipe
from hasten.training.recipes import DraftModelRecipe, EagleRecipe, EarlyExitRecipe, MedusaRecipe, SoftPromptRecipe


class Colour(enum.StrEnum):
    RED = "red"


class Hostile:
    """Every operation raises, as those of an object of the caller's own class may."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("iter")


class HostileMapping(collections.UserDict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("items")


JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**32 + 16, 2**63, 10**400, -(10**5000), 0.5, 1.5, -0.0, 5e-324, 1e308),
    *(math.nan, math.inf, -math.inf, 1j, decimal.Decimal("0.5"), fractions.Fraction(1, 2)),
    *("", "x", "1", "auto", "never", "\ud800", "a\udcff", "\0", "x" * 10**6, Colour.RED, b"", b"a", bytearray(b"a")),
    *([], {}, (), set(), {1}, frozenset(), [1], [-1], [True], [1.0], [None], [[]], [[1]], [["a"]], ["a"], [""], ["\ud800"]),
    *(["x"] * 10**5, ["x" * 10**6], [2**70], [10**5000], list(range(10**5)), [[[[[1]]]]], [Hostile()], range(3), iter([1])),
    *({1: 1}, {1: math.nan}, {1: True}, {-1: 1}, {10**30: 1}, {"a": 1}, {True: 1}, {1: 1000}, {1: []}, {(): 1}, {1: "1"}),
    *(np.int64(1), np.int64(-1), np.uint8(1), np.float32(0.5), np.float64(0.5), np.float32(np.nan), np.bool_(True)),
    *(np.array(1), np.array([1, 2]), np.array([]), [np.int64(1)], {np.int64(1): np.float32(1)}, torch.tensor(1), torch.ones(2)),
    *(object(), Hostile(), int, len, lambda: 0, types.MappingProxyType({1: 1.0}), HostileMapping({1: 1}), NotImplemented, ...),
]
WORKLOAD = functools.partial(Workload, num_prompts=1, input_len=2**24, output_len=1)
_ZERO = ("validation", "held_out", "prompt_tokens", "prompt_seconds")
FIGURES = {**dict.fromkeys(_ZERO, 0.0), "validation_interval": None, "held_out_interval": None}
_COUNTS = ("num_train", "num_validation", "num_held_out", "optimization_tokens", "report_tokens", "num_earlier_reads")
SUMMARY: dict[str, Any] = {**dict.fromkeys(_COUNTS, 1), **dict.fromkeys(("is_changed", "is_soft", "is_real"), True)}
SUMMARY |= {"method": "m", "metric": "m", "model": "m", "difference": 0.0, "difference_interval": None}
MAKERS: dict[type[Any], Callable[..., Any]] = {
    SamplingParams: SamplingParams,
    StructuredOutputs: functools.partial(StructuredOutputs, json_object=True),
    EngineOptions: EngineOptions,
    # The smallest number of sequences, so that every token budget is large enough.
    SchedulerConfig: functools.partial(SchedulerConfig, max_num_seqs=1),
    TrainOptions: TrainOptions,
    MedusaRecipe: MedusaRecipe,
    EagleRecipe: EagleRecipe,
    DraftModelRecipe: DraftModelRecipe,
    EarlyExitRecipe: EarlyExitRecipe,
    SoftPromptRecipe: SoftPromptRecipe,
    DistillRecipe: DistillRecipe,
    DpoRecipe: DpoRecipe,
    RewardModelRecipe: RewardModelRecipe,
    PolicyRecipe: PolicyRecipe,
    SoftPromptOptions: SoftPromptOptions,
    Workload: WORKLOAD,
    Lengths: Lengths,
    Speculation: functools.partial(Speculation, tokens=4),
    QuantizeOptions: QuantizeOptions,
    CacheOptions: CacheOptions,
    SelectOptions: SelectOptions,
    PruneOptions: functools.partial(PruneOptions, ratio=0.25),
    Gptq: Gptq,
    Hqq: Hqq,
    Awq: Awq,
    SmoothQuant: SmoothQuant,  # one field
    TaskOptions: TaskOptions,
    PromptTemplate: functools.partial(PromptTemplate, name="name", text="{{ a }}"),
    InstructionOptions: functools.partial(InstructionOptions, proposer="http://host/v1", proposer_model="m"),
    TemplateOptions: functools.partial(TemplateOptions, template="qa", examples="file"),
    GcgOptions: GcgOptions,
    PezOptions: PezOptions,
    Feedback: functools.partial(Feedback, variant="v", digest="0" * 64, is_good=True, time=0.0),
    DemonstrationOptions: DemonstrationOptions,
    PromptFigures: functools.partial(PromptFigures, **FIGURES),
    OptimizationSummary: functools.partial(OptimizationSummary, **SUMMARY),
    ServerOptions: ServerOptions,
    ServeOptions: ServeOptions,
}
FIELDS = [(settings, field.name) for settings in MAKERS for field in dataclasses.fields(settings)]


def plain(annotation: Any, value: Any) -> bool:
    """Whether a stored value is exactly of the annotated type, all the way down: no subclass, no NaN, no half a character."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return type(value) is tuple and all(plain(arguments[0], item) for item in value)
    if origin is Mapping:
        return type(value) is dict and all(plain(arguments[0], key) and plain(arguments[1], item) for key, item in value.items())
    if arguments and hasattr(annotation, "__args__") and origin is not None and "Literal" in str(origin):
        return value in arguments
    if arguments:
        return any(plain(member, value) for member in arguments)
    if annotation is float:
        return type(value) is float and math.isfinite(value)
    if annotation is int:
        return type(value) is int and abs(value) < 2**63
    if annotation is str:
        return type(value) is str and len(value) <= 2**20 and bool(value.encode() is not None)
    return type(value) is annotation


def same(value: Any, stored: Any) -> bool:
    """Whether the conversion keeps the meaning: equal, or null or one text for a tuple, or a list for a tuple."""
    if isinstance(stored, tuple):
        given = [] if value is None else [value] if isinstance(value, str) else list(value)
        return len(given) == len(stored) and all(map(same, given, stored))
    if isinstance(stored, dict):
        return dict(value or {}) == stored
    return isinstance(value, bool) == isinstance(stored, bool) and bool(value == stored)


def make(settings: type[Any], name: str, value: Any) -> Any:
    """Return the settings with this value, or the error that refuses it. Any other exception is a fault."""
    try:
        return MAKERS[settings](**{name: value})
    except HastenError as error:
        return error


@pytest.mark.parametrize(("settings", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_every_field_takes_its_type_or_refuses_by_name(settings: type[Any], name: str) -> None:
    annotation = get_type_hints(settings)[name]
    error_type = InvalidRequest if settings in (SamplingParams, StructuredOutputs) else InvalidOption
    for value in JUNK:
        started = time.thread_time()
        outcome = make(settings, name, value)
        assert time.thread_time() - started < 2
        if isinstance(outcome, HastenError):
            assert type(outcome) is error_type
            assert name in str(outcome)
            assert len(str(outcome)) <= MAX_MESSAGE
            assert str(outcome).isprintable()
        else:
            stored = getattr(outcome, name)
            assert plain(annotation, stored), f"{name}={show(value)} was stored as {show(stored)}"
            assert same(value, stored), f"{name}={show(value)} was stored as {show(stored)}"


def names_in(function: Any) -> tuple[str, ...]:
    return () if function is None else function.__code__.co_names


def test_no_settings_class_is_left_out() -> None:
    """The list above has every class that checks its fields, and every class whose fields are options of a command."""
    found = set()
    packages = tuple(
        f"hasten.{name}."
        for name in ("core", "scheduling", "training", "entrypoints", "compress", "prompts", "serving", "cli", "advise")
    )
    for info in pkgutil.walk_packages(hasten.__path__, "hasten."):
        if info.name.startswith(packages):
            classes = (item for item in vars(import_module(info.name)).values() if dataclasses.is_dataclass(item))
            found |= {item for item in classes if "check_fields" in names_in(getattr(item, "__post_init__", None))}
    assert found == set(MAKERS)
    assert {group.source for group in (ENGINE, SAMPLING, SERVE, SERVER, TASK, TEMPLATE, TRAINING)} | {
        kind.recipe for kind in KINDS.values()
    } <= found


@pytest.mark.parametrize("annotation", [int, "float", tuple[int, ...], Mapping[int, float], dict[str, int], Any, "int | None"])
def test_a_field_without_a_limit_cannot_be_declared(annotation: Any) -> None:
    undeclared = dataclasses.make_dataclass("Undeclared", [("field", annotation)])
    with pytest.raises(TypeError):
        check_fields(undeclared(1), "option", InvalidOption)


def test_the_defaults_are_valid() -> None:
    """A default is not checked when settings are made, so it is checked here."""
    for settings, name in FIELDS:
        field = next(field for field in dataclasses.fields(settings) if field.name == name)
        if field.default is not dataclasses.MISSING:
            assert plain(get_type_hints(settings)[name], field.default), name


def test_many_faults_are_all_named_within_the_bound() -> None:
    wrong = {field.name: object() for field in dataclasses.fields(SamplingParams)}
    with pytest.raises(InvalidRequest) as error:
        SamplingParams(**wrong)
    assert all(name in str(error.value) for name in wrong)
    assert len(str(error.value)) <= MAX_MESSAGE


@pytest.mark.parametrize("value", ["redis://:secret@h" + "x" * 5000, b"redis://:secret@h", ["redis://:secret@h"]])
def test_no_message_shows_an_address_that_may_hold_a_password(value: Any) -> None:
    with pytest.raises(InvalidOption, match=r"result_cache=\.\.\. \(allowed") as error:
        EngineOptions(result_cache=value)
    assert "secret" not in str(error.value)
    assert "secret" not in repr(EngineOptions(result_cache="redis://:secret@h"))
