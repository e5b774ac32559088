"""Exit codes and error messages: mistakes of the user, errors of the model, and bugs in hasten."""

import pytest

from hasten import __version__
from hasten.cli import main
from hasten.core.renamed import RENAMED_FLAGS

ENGINE_FLAGS = {
    "--quantize": "--quantization",
    "--kv-dtype": "--kv-cache-dtype",
    "--speculation": "--speculative-method",
    "--num-draft-tokens": "--num-speculative-tokens",
    "--draft-layers": "--self-draft-layers",
    "--draft-quantize": "--draft-quantization",
    "--ordering": "--scheduling-policy",
    "--batch-wait": "--max-batch-delay",
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["genrate"], "unknown command 'genrate'. Did you mean 'generate'"),
        (["generate", "demo", "x", "--temprature", "1"], "unknown option --temprature. Did you mean '--temperature'"),
        (["bench", "latency", "demo", "--input-length", "3"], "Did you mean '--input-len'"),
        (["bench", "latncy"], "Did you mean 'latency'"),
        (["bench", "latency", "demo", "--repeats", "few"], "--repeats"),
        (["chat", "demo", "--beam-width", "3"], "unknown option --beam-width"),
        (["generate", "--max-tokens"], "--max-tokens"),
        (["pull"], "one model is needed"),
        (["pull", "a", "--model", "b"], "one model is needed"),
        (["rm", "demo"], "ships inside"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(hasten, arguments, expected):
    ran = hasten(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert expected in ran.err


@pytest.mark.parametrize(
    ("command", "new"), [(["generate", "demo", "x"], ENGINE_FLAGS), (["bench", "latency", "demo"], ENGINE_FLAGS)]
)
def test_a_renamed_engine_flag_names_the_new_one(hasten, command, new):
    for old in new:
        ran = hasten(*command, old, "1")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"error: unknown option {old}. It was renamed to {new[old]}.\n"


@pytest.mark.parametrize(
    ("task", "old", "new"),
    [
        ("eagle", "--guesses", "--ttt-steps"),
        ("eagle", "--state-layers", "--aux-layers"),
        ("draft", "--hard", "--hard-label-weight"),
        ("eagle", "--start", "--init-from"),
        ("draft", "--start", "--init-from"),
        ("medusa", "--generate", "--self-distill"),
        ("exits", "--window", "--seq-len"),
        ("medusa", "--held-out", "--validation-fraction"),
        ("medusa", "--vocabulary", "--lm-head"),
    ],
)
def test_a_renamed_training_flag_names_the_new_one(hasten, task, old, new):
    for spelling in (old, old[:2] + old[2:].replace("-", "_")):
        ran = hasten("train", task, "demo", "--data", "x", "--out", "y", spelling, "1")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"error: unknown option {old}. It was renamed to {new}.\n"


def test_the_renamed_flag_of_eval_names_the_new_one(hasten):
    ran = hasten("eval", "demo", "--reference", "demo")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: unknown option --reference. It was renamed to --against.\n"


def test_every_renamed_flag_is_tested():
    """The tests above cover the whole table."""
    training = {"--guesses", "--state-layers", "--hard", "--start", "--generate", "--window", "--held-out", "--vocabulary"}
    assert {*ENGINE_FLAGS, *training, "--reference"} == set(RENAMED_FLAGS)


def test_a_new_name_is_offered_only_by_a_command_that_has_it(hasten):
    """``hasten eval`` keeps its own ``--window``."""
    ran = hasten("train", "medusa", "demo", "--data", "x", "--out", "y", "--guesses", "1")
    assert ran.code == 2
    assert "renamed" not in ran.err
    ran = hasten("eval", "no-such-model", "--window", "0")
    assert "renamed" not in ran.err


def test_a_bug_is_exit_code_1_and_reported_as_one(hasten, monkeypatch):
    def raise_planted_error(*_, **__):
        raise KeyError("planted")

    monkeypatch.setattr("hasten.cli.doctor.collect_report", raise_planted_error)
    ran = hasten("doctor")
    assert ran.code == 1
    assert "bug in hasten" in ran.err
    assert "Traceback" not in ran.err
    with pytest.raises(KeyError, match="planted"):
        hasten("doctor", "--debug")


def test_debug_raises_the_error(hasten):
    from hasten.core.errors import ModelNotFound

    with pytest.raises(ModelNotFound):
        hasten("generate", "./no/model", "x", "--debug")


def test_only_warnings_of_hasten_are_shown_each_in_one_line(hasten, monkeypatch):
    import warnings

    from hasten.engine.kv_cache_sizing import KvCacheWarning

    def warn():
        warnings.simplefilter("always")
        warnings.warn("reduced from 9 to 8", KvCacheWarning, stacklevel=1)
        warnings.warn("internal detail", DeprecationWarning, stacklevel=1)
        return {}

    monkeypatch.setattr("hasten.cli.doctor.collect_report", warn)
    ran = hasten("doctor", "--json")
    assert (ran.out, ran.err) == ("{}\n", "warning: reduced from 9 to 8\n")


def test_version_and_help(hasten):
    assert hasten("--version").out == f"hasten {__version__}\n"
    assert hasten("--help").code == 0
    assert {
        name
        for name in (
            "generate",
            "chat",
            "serve",
            "bench",
            "eval",
            "doctor",
            "explain",
            "pull",
            "ls",
            "rm",
            "quantize",
            "prune",
            "distill",
            "cache",
            "prompt",
            "data",
            "presets",
            "diagnose",
            "top",
        )
        if name in hasten("--help").out
    } == {command.name or command.callback.__name__ for command in main.app.registered_commands} | {
        "bench",
        "cache",
        "prompt",
        "data",
    }
