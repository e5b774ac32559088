"""Every snippet of the documentation runs, and every generated part is up to date.

The Python blocks and ``hasten`` commands of a page run in order; the blocks share one namespace. Only ``no-run: REASON`` in its
info string skips a block.
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
        """Return the ``hasten`` commands: lines after ``$`` in a console block, any line of a script."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [line[2:] for line in lines if line.startswith("$ ")] if self.language == "console" else lines
        return [line for line in commands if line.startswith("hasten ")]


def snippets(page: str) -> Iterator[Snippet]:
    for found in FENCE.finditer(page):
        language, _, option = found["info"].strip().partition(" ")
        if option:
            assert OPT_OUT.fullmatch(option), f"```{found['info']}: only 'no-run: REASON' skips a block"
            continue
        line = page[: found.start("text")].count("\n")
        if language in ("python", "console", "bash", "sh"):
            yield Snippet(language, found["text"], line)


def run_page(path: Path, page: str) -> int:
    """Run the snippets of a page and return their number. A traceback shows the page's own line numbers."""
    module = types.ModuleType(f"page_{path.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module  # the dataclass decorator looks up the module
    num_run = 0
    try:
        for snippet in snippets(page):
            if snippet.language == "python":
                exec(compile("\n" * snippet.line + snippet.text, str(path), "exec", dont_inherit=True), module.__dict__)
                num_run += 1
            for command in snippet.commands:
                assert run(shlex.split(command, comments=True)[1:]) == 0, f"{path.name}:{snippet.line}: {command}"
                num_run += 1
    finally:
        del sys.modules[module.__name__]
    return num_run


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(path, tmp_path, monkeypatch, capsys):
    """Snippets run in an empty folder with an empty standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    page = path.read_text(encoding="utf-8")
    try:
        num_run = run_page(path, page)
    finally:
        sys.stdin.close()
    assert num_run == sum((snippet.language == "python") + len(snippet.commands) for snippet in snippets(page))


def test_pages_are_found():
    assert {"README.md", "README.zh-CN.md", "first-steps.md"} <= {path.name for path in PAGES}


def test_links_inside_the_repository_are_not_broken():
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


def test_a_block_is_skipped_only_with_a_reason():
    assert run_page(Path("planted.md"), "```python no-run: needs a GPU\nassert False\n```\n") == 0
    assert run_page(Path("planted.md"), "```text\nnot code\n```\n") == 0
