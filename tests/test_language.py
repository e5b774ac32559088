"""The language of the code and the docs, as far as a program can hold it.

Words that this project once invented are banned everywhere. Ordinary English words are banned only as parts of identifiers, where
the field has a word for what they once meant here. A docstring opens with one short line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "hasten"
CODE = sorted(path for folder in ("src", "tests", "benchmarks", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(
    path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cpp")
)
# The log is history, with a glossary at its top; results are data.
PAGES = sorted(
    p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md"), *ROOT.glob("examples/**/*.md")]
)

# Invented words, and persons for things. Word -> the field's word.
BANNED = {
    "guess": "draft, draft token",
    "guesses": "drafts, draft tokens",
    "guessed": "drafted, proposed",
    "guesser": "drafter",
    "guessers": "drafters",
    "guessing": "drafting",
    "whoever": "name the thing",
    "nobody": "nothing, no request",
    "somebody": "name the thing",
    "anybody": "name the thing",
    "sureness": "confidence",
    "worthwhile": "select_nodes",
    "trainee": "training task",
    "outlook": "acceptance calibration",
    "likeliest": "top, most likely",
    "obey": "run, apply",
    "obeys": "runs, applies",
}
# Ordinary English, banned as a word of an identifier. Word -> the field's word.
BANNED_IN_NAMES = {
    "said": "draft_prob",
    "chance": "acceptance_prob",
    "chances": "acceptance_probs",
    "told": "progress",
    "doubt": "min_expand_probability",
    "trust": "acceptance_calibration",
    "pace": "cost_model",
    "shallow": "self_draft",
    "whole": "full, complete, per_request",
    "taps": "aux_hidden_states, aux_layers",
    "intake": "input_processor",
    "verdict": "outcome",
    "verdicts": "outcomes",
    "trail": "kv_state",
    "tips": "frontier",
    "chooser": "token_selector",
    "usable": "is_finite",
    "seats": "max_sequences",
}
VAGUE_FILES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "stuff",
    "things",
    "few_words",
    "extended",
    "alone",
    "fit",
    "build",
    "lower",
    "pick",
    "race",
}
MAX_FIRST_LINE = 100
# Names in which an ordinary word means what it says to every reader.
ALLOWED_NAMES = {"usable_cores"}
# Files that hold banned words as data: the old spellings that are refused, and the tests of that.
OLD_SPELLINGS = {"src/hasten/core/renamed.py", "tests/core/test_renamed.py", "tests/cli/test_main.py", "tests/test_language.py"}


def words(name: str) -> set[str]:
    """Return the lower-case words of an identifier in snake case or camel case."""
    return {part.lower() for piece in name.split("_") for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", piece)}


def banned_prose(text: str) -> list[str]:
    return re.findall(rf"(?i)(?<![\w-])(?:{'|'.join(BANNED)})(?![\w-])", text)


def identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def banned_names(text: str) -> list[str]:
    banned = BANNED.keys() | BANNED_IN_NAMES.keys()
    return sorted({name for name in identifiers(ast.parse(text)) if words(name) & banned and name not in ALLOWED_NAMES})


def long_first_lines(text: str) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(ast.parse(text)) if isinstance(node, documented))
    return [first for doc in docstrings if doc and len(first := doc.splitlines()[0]) > MAX_FIRST_LINE]


def found_in(paths: list[Path], check: object) -> dict[str, list[str]]:
    assert callable(check)
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf8") for path in paths}
    return {name: sorted(set(found)) for name, text in texts.items() if name not in OLD_SPELLINGS and (found := check(text))}


@pytest.mark.parametrize("paths", [CODE, NATIVE, PAGES], ids=["python", "native", "docs"])
def test_no_invented_word_is_used(paths: list[Path]) -> None:
    assert found_in(paths, banned_prose) == {}


def test_identifiers_use_the_words_of_the_field() -> None:
    assert found_in([path for path in CODE if SOURCE in path.parents], banned_names) == {}


def test_docstrings_open_with_one_short_line() -> None:
    assert found_in([path for path in CODE if SOURCE in path.parents], long_first_lines) == {}


def test_file_names_say_what_is_in_them() -> None:
    assert [path.name for path in (*CODE, *NATIVE) if path.stem in VAGUE_FILES] == []


def test_the_rules_see_planted_breaches() -> None:
    """Negative control: each rule finds the word that it is for."""
    assert banned_prose('"""The guesser is asked again."""') == ["guesser"]
    assert banned_prose("Whoever reads this") == ["Whoever"]
    assert banned_prose("an educated re-guess, guesswork") == []
    assert banned_names("def f(draft_said, wholesale):\n    self._told = GuesserState = 1\n") == [
        "GuesserState",
        "_told",
        "draft_said",
    ]
    assert long_first_lines(f'"""{"a" * 101}"""\ndef f():\n    """{"b" * 100}"""\n') == ["a" * 101]
