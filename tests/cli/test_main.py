"""How the command line meets mistakes: its own, the user's and hasten's."""

import pytest

from hasten import __version__
from hasten.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
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
def test_mistakes_are_one_line_and_code_2(hasten, arguments, words):
    ran = hasten(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ")
    assert words in ran.err


def test_a_fault_of_hasten_is_code_1_and_says_so(hasten, monkeypatch):
    def broken(*_, **__):
        raise KeyError("planted")

    monkeypatch.setattr("hasten.cli.doctor.examine", broken)
    ran = hasten("doctor")
    assert ran.code == 1
    assert "fault in hasten" in ran.err
    assert "Traceback" not in ran.err
    with pytest.raises(KeyError, match="planted"):
        hasten("doctor", "--debug")


def test_debug_shows_where_a_user_error_comes_from(hasten):
    from hasten.core.errors import ModelNotFound

    with pytest.raises(ModelNotFound):
        hasten("generate", "./no/model", "x", "--debug")


def test_warnings_of_hasten_are_one_line_and_those_of_libraries_are_not_shown(hasten, monkeypatch):
    import warnings

    from hasten.engine.kv_cache_sizing import KvCacheWarning

    def examine():
        warnings.simplefilter("always")
        warnings.warn("reduced from 9 to 8", KvCacheWarning, stacklevel=1)
        warnings.warn("internal detail", DeprecationWarning, stacklevel=1)
        return {}

    monkeypatch.setattr("hasten.cli.doctor.examine", examine)
    ran = hasten("doctor", "--json")
    assert (ran.out, ran.err) == ("{}\n", "warning: reduced from 9 to 8\n")


def test_version_and_help(hasten):
    assert hasten("--version").out == f"hasten {__version__}\n"
    assert hasten("--help").code == 0
    assert {
        name for name in ("generate", "chat", "bench", "eval", "doctor", "pull", "ls", "rm") if name in hasten("--help").out
    } == {command.name or command.callback.__name__ for command in main.app.registered_commands} | {"bench"}
