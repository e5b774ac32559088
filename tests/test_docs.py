"""Every snippet of the documentation runs, and every generated part is up to date.

A file's Python blocks share one namespace and run in order, beside its ``hasten`` commands. A block is left out only by
``no-run: REASON`` in its info string.
"""

import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hasten.cli.main import run

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
OPT_OUT = re.compile(r"no-run: \w.+")


@dataclass(frozen=True)
class Snippet:
    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """``hasten`` commands: lines after ``$`` on a console, any line of a script."""
        lines = self.text.replace("\\\n", " ").splitlines()
        shown = [line[2:] for line in lines if line.startswith("$ ")] if self.language == "console" else lines
        return [line for line in shown if line.startswith("hasten ")]


def snippets(page: str) -> Iterator[Snippet]:
    for found in FENCE.finditer(page):
        language, _, words = found["info"].strip().partition(" ")
        if words:
            assert OPT_OUT.fullmatch(words), f"```{found['info']}: a block is left out by 'no-run: REASON' and by nothing else"
            continue
        line = page[: found.start("text")].count("\n")
        if language in ("python", "console", "bash", "sh"):
            yield Snippet(language, found["text"], line)


def run_page(path: Path, page: str) -> int:
    """How many snippets ran. A snippet fails with the page's own line numbers."""
    module = types.ModuleType(f"page_{path.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    ran = 0
    try:
        for snippet in snippets(page):
            if snippet.language == "python":
                exec(compile("\n" * snippet.line + snippet.text, str(path), "exec", dont_inherit=True), module.__dict__)
                ran += 1
            for command in snippet.commands:
                assert run(shlex.split(command, comments=True)[1:]) == 0, f"{path.name}:{snippet.line}: {command}"
                ran += 1
    finally:
        del sys.modules[module.__name__]
    return ran


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(path, tmp_path, monkeypatch, capsys):
    """In an empty folder, with nothing on standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    page = path.read_text(encoding="utf-8")
    try:
        ran = run_page(path, page)
    finally:
        sys.stdin.close()
    assert ran == sum((snippet.language == "python") + len(snippet.commands) for snippet in snippets(page))


def test_pages_are_found():
    assert {"README.md", "README.zh-CN.md", "first-steps.md"} <= {path.name for path in PAGES}


def test_links_inside_the_repository_lead_somewhere():
    broken = []
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    stale = [
        path.name for path, text in generate.generated().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make docs"


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nassert False\n```\n", AssertionError),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", AssertionError),
        ("```console\n$ hasten generate demo --temperature -1 x\n```\n", AssertionError),
        ("```sh\nhasten genrate\n```\n", AssertionError),
        ("```python skip\nassert False\n```\n", AssertionError),
    ],
)
def test_a_wrong_snippet_is_caught(page, error):
    """Negative control."""
    with pytest.raises(error):
        run_page(Path("planted.md"), page)


def test_a_block_is_left_out_only_with_a_reason():
    assert run_page(Path("planted.md"), "```python no-run: needs a GPU\nassert False\n```\n") == 0
    assert run_page(Path("planted.md"), "```text\nnot code\n```\n") == 0
