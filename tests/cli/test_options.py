"""Every field of the dataclasses is an option, and its value arrives unchanged."""

import dataclasses

import pytest
import typer

from hasten.cli.engine_options import ENGINE
from hasten.cli.options import OptionGroup, OptionValues, with_options
from hasten.cli.sampling_options import SAMPLING
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.core.sampling_params import SamplingParams

CASES = {
    "exit_rule": (["classifier"], "classifier"),
    "exit_layer": (["3"], 3),
    "exit_threshold": (["0.8"], 0.8),
    "exit_tolerance": (["0.02"], 0.02),
    "exit_decay": (["2"], 2.0),
    "temperature": (["0.7"], 0.7),
    "top_k": (["5"], 5),
    "top_p": (["0.5"], 0.5),
    "min_p": (["0.1"], 0.1),
    "typical_p": (["0.9"], 0.9),
    "repetition_penalty": (["1.1"], 1.1),
    "presence_penalty": (["-1"], -1.0),
    "frequency_penalty": (["2"], 2.0),
    "no_repeat_ngram_size": (["3"], 3),
    "logit_bias": (["7=-1.5", "8=100"], {7: -1.5, 8: 100.0}),
    "bad_words": (["a b", "c"], ("a b", "c")),
    "bad_words_ids": (["1,2", "3"], ((1, 2), (3,))),
    "allowed_token_ids": (["4", "5"], (4, 5)),
    "n": (["2"], 2),
    "seed": (["11"], 11),
    "thinking_token_budget": (["7"], 7),
    "min_tokens": (["1"], 1),
    "max_tokens": (["9"], 9),
    "stop": (["\n\n", "--end"], ("\n\n", "--end")),
    "stop_token_ids": (["6"], (6,)),
    "ignore_eos": ([None], True),
    "include_stop_str_in_output": ([None], True),
    "skip_special_tokens": ([None], True),
    "logprobs": (["0"], 0),
    "acceptance": (["typical"], "typical"),
    "posterior_threshold": (["0.2"], 0.2),
    "posterior_alpha": (["0.5"], 0.5),
    "beam_width": (["4"], 4),
    "length_penalty": (["0.6"], 0.6),
    "early_stopping": (["never"], "never"),
}


def call(group: OptionGroup, *arguments: str) -> dict[str, object]:
    received = {}

    def sampling_command(*, sampling: OptionValues) -> None:
        received.update(sampling)

    def engine_command(*, engine: OptionValues) -> None:
        received.update(engine)

    app = typer.Typer(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
    app.command()(with_options(group)(sampling_command if group is SAMPLING else engine_command))
    app(list(arguments), standalone_mode=False)
    return received


def test_every_sampling_setting_is_an_option():
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(SAMPLING.help) == set(CASES) == fields - {"structured_outputs"}  # which has options of its own


def test_every_engine_option_is_an_option():
    """``--seed`` is the request's, and progress bars are always on, so neither is an engine option."""
    fields = {field.name for field in dataclasses.fields(EngineOptions)}
    assert set(ENGINE.help) == fields - {"seed", "show_progress"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("_", "-")], ids=["underscore", "hyphen"])
def test_an_option_sets_its_field(name, spelling):
    texts, value = CASES[name]
    arguments = [part for text in texts for part in (f"--{spelling(name)}", text) if part is not None]
    assert call(SAMPLING, *arguments) == {name: value}
    needed = {"min_tokens": {"max_tokens": 9}, "length_penalty": {"beam_width": 2}, "early_stopping": {"beam_width": 2}}
    needed |= {key: {"acceptance": "typical"} for key in ("posterior_threshold", "posterior_alpha")}
    needed |= {key: {"exit_rule": "softmax"} for key in ("exit_threshold", "exit_tolerance")}
    needed |= {"exit_layer": {"exit_rule": "fixed"}, "exit_decay": {"exit_rule": "softmax", "exit_threshold": 0.5}}
    required = needed.get(name, {})
    assert getattr(SamplingParams(**{name: value, **required}), name) == value


def test_an_option_left_out_is_absent():
    assert call(SAMPLING) == {}
    assert call(SAMPLING, "--no-ignore-eos") == {"ignore_eos": False}
    assert call(ENGINE, "--kv_cache_memory", "1GiB", "--no-prefix-caching") == {"kv_cache_memory": "1GiB", "prefix_caching": False}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("top_k", "many"),
        ("temperature", "warm"),
        ("logit_bias", "5"),
        ("logit_bias", "a=1"),
        ("bad_words_ids", "1,x"),
        ("early_stopping", "x"),
    ],
)
def test_malformed_text_names_the_option(name, text):
    with pytest.raises(InvalidOption, match=f"--{name.replace('_', '-')}.*{text}"):
        call(SAMPLING, f"--{name}", text)
